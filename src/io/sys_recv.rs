//! Receiving datagrams in batches: `recvmmsg(2)`, with `UDP_GRO` of `udp(7)`.
//!
//! Nothing here allocates after construction. Every header is written anew before every call, because the
//! kernel shrinks `msg_namelen` and `msg_controllen` to what it wrote.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::raw::{CONTROL_LEN, Control, RawAddress};

/// A header that points nowhere.
pub(super) fn blank_header() -> libc::mmsghdr {
    // SAFETY: mmsghdr is a C struct of integers and pointers, for which all-zero bytes are a valid value.
    unsafe { std::mem::zeroed() }
}

pub(super) fn blank_vector() -> libc::iovec {
    libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }
}

/// One datagram, or several of equal size that the kernel joined (`UDP_GRO`), as it was received.
#[derive(Debug)]
pub struct Received<'a> {
    /// Where it came from; `None` if the kernel named no IP address.
    pub source: Option<SocketAddr>,
    /// Where it was sent to, on a socket that asks ([`super::sys_socket::tell_destination`]).
    pub destination: Option<SocketAddr>,
    /// Its bytes.
    pub bytes: &'a mut [u8],
    /// The length of each joined datagram but the last, which may be shorter; the whole length if not joined.
    pub segment: usize,
    /// Bytes were cut off because the buffer was too small.
    pub truncated: bool,
}

/// Reusable buffers for one `recvmmsg` call.
#[derive(Debug)]
pub struct RecvBatch {
    size: usize,
    /// From one buffer to the next: an odd number of cache lines, so that they do not all fall into one set.
    stride: usize,
    filled: usize,
    bytes: Vec<u8>,
    names: Vec<RawAddress>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: the pointers in `headers` and `vectors` are written anew by every `recv` and never read outside of it.
unsafe impl Send for RecvBatch {}
// SAFETY: as for Send; no shared method reads the pointers.
unsafe impl Sync for RecvBatch {}

impl RecvBatch {
    /// `count` buffers of `size` bytes each.
    pub fn new(count: usize, size: usize) -> RecvBatch {
        let (count, size) = (count.max(1), size.max(1));
        let stride = (size.div_ceil(64) | 1) * 64;
        RecvBatch {
            size,
            stride,
            filled: 0,
            bytes: vec![0; count * stride],
            names: vec![RawAddress::default(); count],
            controls: vec![Control::BLANK; count],
            vectors: vec![blank_vector(); count],
            headers: vec![blank_header(); count],
        }
    }

    /// How many datagrams one call can take.
    pub fn capacity(&self) -> usize {
        self.headers.len()
    }

    /// Receives as many datagrams as are there, up to the capacity, without waiting; returns how many.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; else what the socket reports (`ConnectionRefused` for an ICMP
    /// port-unreachable on a connected socket: that consumes the report, not a datagram).
    pub fn recv(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.filled = 0;
        self.point();
        loop {
            // SAFETY: recvmmsg(2): `headers` is an array of `vlen` headers; each points to one iovec of `size`
            // bytes in `bytes`, a name of CAPACITY bytes and a control of CONTROL_LEN bytes, all of which are
            // owned by `self`, borrowed mutably for the call, and disjoint. A null timeout is allowed.
            let taken = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    self.headers.len() as libc::c_uint,
                    libc::MSG_DONTWAIT,
                    ptr::null_mut(),
                )
            };
            if let Ok(taken) = usize::try_from(taken) {
                self.filled = taken;
                return Ok(taken);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// The datagram at `index` of the last `recv`; `None` past the number it returned.
    pub fn get(&mut self, index: usize) -> Option<Received<'_>> {
        if index >= self.filled {
            return None;
        }
        let header = self.headers[index];
        let len = (header.msg_len as usize).min(self.size);
        let start = index * self.stride;
        let name_len = header.msg_hdr.msg_namelen as usize;
        let control_len = header.msg_hdr.msg_controllen;
        Some(Received {
            source: self.names[index].read(name_len),
            destination: self.controls[index].read_destination(control_len),
            segment: self.controls[index].read_gro(control_len).unwrap_or(len),
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            bytes: &mut self.bytes[start..start + len],
        })
    }

    /// Points every header at its buffers with their full lengths.
    fn point(&mut self) {
        let buffers = self.bytes.chunks_exact_mut(self.stride).map(|chunk| &mut chunk[..self.size]);
        let slots =
            self.headers.iter_mut().zip(&mut self.vectors).zip(&mut self.names).zip(&mut self.controls);
        for ((((header, vector), name), control), buffer) in slots.zip(buffers) {
            vector.iov_base = buffer.as_mut_ptr().cast();
            vector.iov_len = buffer.len();
            let message = &mut header.msg_hdr;
            message.msg_name = ptr::from_mut(name).cast();
            message.msg_namelen = RawAddress::CAPACITY as libc::socklen_t;
            message.msg_iov = vector;
            message.msg_iovlen = 1;
            message.msg_control = ptr::from_mut(control).cast();
            message.msg_controllen = CONTROL_LEN as _;
            message.msg_flags = 0;
            header.msg_len = 0;
        }
    }
}
