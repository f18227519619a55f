//! A call's media as a whole: offers, answers, datagrams.
