//! Floor 5: the epoll shell around the core, with real sockets, threads and clocks.
//!
//! Unsafe code lives in the `sys_*` files alone, each call beside the kernel's contract for it.

pub mod addresses;
pub mod cells;
pub mod client;
pub mod control_loop;
pub mod cores;
pub mod headers;
pub mod media;
pub mod multicast;
pub mod netlink;
pub mod node;
pub mod operator;
pub mod outgoing;
pub mod peer;
pub mod raw;
pub mod records;
pub mod reload;
pub mod shard_loop;
pub mod steer;
pub mod supervisor;
pub mod sys_announce;
pub mod sys_bpf;
pub mod sys_process;
pub mod sys_recv;
pub mod sys_send;
pub mod sys_socket;
pub mod sys_thread;
pub mod sys_time;
pub mod tally;
pub mod vote_disk;
pub mod vote_file;
