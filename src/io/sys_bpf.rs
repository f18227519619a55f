//! Programs and maps in the kernel: `bpf(2)`, as far as steering sockets needs it.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

// Commands, map, program and attach types of linux/bpf.h.
const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const MAP_TYPE_SOCKMAP: u32 = 15;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;

/// The kernel wants to know; the helper functions used here are open to every licence.
const LICENSE: &CStr = c"MIT";

/// `union bpf_attr` for `BPF_MAP_CREATE`, up to the last field that is not 0.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// `union bpf_attr` for `BPF_MAP_UPDATE_ELEM` and `BPF_MAP_DELETE_ELEM`.
#[repr(C)]
struct MapElement {
    map: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    instructions: u32,
    code: u64,
    license: u64,
    /// Level and size of the verifier's log, its place, a kernel version, flags.
    unused: [u32; 6],
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// A map from numbers to UDP sockets, which programs can look up (`BPF_MAP_TYPE_SOCKMAP`, kernel documentation
/// bpf/map_sockmap). It does not keep a socket open: one that is closed is no longer in it.
#[derive(Debug)]
pub struct SocketMap(OwnedFd);

impl SocketMap {
    /// An empty map for the numbers 0 to `entries` - 1.
    ///
    /// # Errors
    /// `PermissionDenied` without CAP_BPF and CAP_NET_ADMIN, and before Linux 5.11 over RLIMIT_MEMLOCK; `ENOSYS` and
    /// `InvalidInput` from a kernel without the system call or this type.
    pub fn new(entries: u32) -> io::Result<SocketMap> {
        let attr = MapCreate { map_type: MAP_TYPE_SOCKMAP, key_size: 4, value_size: 4, max_entries: entries };
        // SAFETY: bpf(2): BPF_MAP_CREATE reads the attributes, which hold no pointers, and returns a new descriptor.
        unsafe { bpf_fd(MAP_CREATE, &attr) }.map(SocketMap)
    }

    /// The descriptor, for a program that looks things up.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Puts a bound socket in the place `key`.
    ///
    /// # Errors
    /// From `bpf(2)`: `EOPNOTSUPP` for a socket that is not bound, or not of UDP.
    pub fn insert(&self, key: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let value = socket.as_raw_fd() as u32;
        self.element(MAP_UPDATE_ELEM, &key, &raw const value)
    }

    /// Makes the place `key` empty.
    ///
    /// # Errors
    /// From `bpf(2)`: `InvalidInput` if it is empty already.
    pub fn remove(&self, key: u32) -> io::Result<()> {
        self.element(MAP_DELETE_ELEM, &key, std::ptr::null())
    }

    fn element(&self, command: libc::c_long, key: &u32, value: *const u32) -> io::Result<()> {
        let (map, key) = (self.0.as_raw_fd() as u32, std::ptr::from_ref(key) as u64);
        let attr = MapElement { map, zero: 0, key, value: value as u64, flags: 0 };
        // SAFETY: bpf(2): both commands read a key of the map's 4 bytes at `key`, a live u32; BPF_MAP_UPDATE_ELEM also
        // reads a value of the map's 4 bytes at `value`, which `insert` passes from a live u32. Neither writes.
        unsafe { bpf(command, &attr) }.map(drop)
    }
}

/// Loads a program that chooses sockets (`BPF_PROG_TYPE_SK_LOOKUP`, kernel documentation bpf/prog_sk_lookup), given as
/// its 8-byte instructions.
///
/// # Errors
/// As [`SocketMap::new`]; `InvalidInput` and `PermissionDenied` too if the kernel finds the program wrong.
pub fn load_sk_lookup(code: &[u64]) -> io::Result<OwnedFd> {
    let mut name = [0; 16];
    name[..12].copy_from_slice(b"tandem_media");
    let attr = ProgLoad {
        prog_type: PROG_TYPE_SK_LOOKUP,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        unused: [0; 6],
        name,
        interface: 0,
        attach_type: ATTACH_SK_LOOKUP,
    };
    // SAFETY: bpf(2): BPF_PROG_LOAD reads `instructions` times 8 bytes at `code`, which is the live slice, and the
    // licence up to its zero byte; it writes nothing, as there is no log. It returns a new descriptor.
    unsafe { bpf_fd(PROG_LOAD, &attr) }
}

/// Attaches a program of [`load_sk_lookup`] to a network namespace until the returned descriptor is closed, at the latest
/// by the end of the process.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_ADMIN in the namespace; `E2BIG` if it has 64 programs already.
pub fn attach_sk_lookup(program: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (program, target) = (program.as_raw_fd() as u32, namespace.as_raw_fd() as u32);
    let attr = LinkCreate { program, target, attach_type: ATTACH_SK_LOOKUP, flags: 0 };
    // SAFETY: bpf(2): BPF_LINK_CREATE reads the attributes, which hold no pointers, and returns a new descriptor.
    unsafe { bpf_fd(LINK_CREATE, &attr) }
}

/// # Safety
/// `attr` must be what `union bpf_attr` is for the command, and the pointers in it valid for what the command does.
unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<libc::c_long> {
    // SAFETY: bpf(2) reads `size` bytes of attributes, a live struct without padding of that size; what lies behind its
    // last field counts as 0. For pointers in it the caller answers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// # Safety
/// As [`bpf`], of a command that returns a new descriptor.
unsafe fn bpf_fd<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: as the caller promises.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: the call above returned this descriptor (close-on-exec by itself), and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
