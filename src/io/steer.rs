//! Steering: the kernel gives each shard the datagrams for its media ports on one socket, however many ports there are.
//!
//! A program (`BPF_PROG_TYPE_SK_LOOKUP`, kernel documentation bpf/prog_sk_lookup) is asked before the kernel looks for a
//! socket bound to a datagram's destination. It works out whose the port is, as [`MediaPorts::slot_of`] does, and looks up
//! the shard's socket for that service address. A shard is in the map only for addresses that this node holds; whatever
//! finds no socket there goes the usual way, also to programs of other nodes on this machine.
//!
//! [`MediaPorts::slot_of`]: crate::app::media::MediaPorts::slot_of

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::media::MediaPlan;
use super::sys_bpf::{self, SocketMap};

/// What steering lacks.
#[derive(Debug, thiserror::Error)]
#[error("TANDEM_MEDIA_STEER=on: cannot {what}: {error}: {}; or set TANDEM_MEDIA_STEER=off", remedy(.error))]
pub struct SteerError {
    /// What was tried.
    pub what: &'static str,
    /// What the system said.
    pub error: io::Error,
}

impl SteerError {
    /// Turns what the system said into an error.
    pub fn new(what: &'static str) -> impl FnOnce(io::Error) -> SteerError {
        move |error| SteerError { what, error }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "it needs CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW, before Linux 5.11 also LimitMEMLOCK=infinity"
        }
        _ => "it needs Linux 5.9 or newer with CONFIG_BPF_SYSCALL",
    }
}

/// The program of a node, attached to its network namespace for as long as this lives, and the map it looks in.
#[derive(Debug)]
pub struct Steering {
    map: SocketMap,
    shards: u16,
    _attached: OwnedFd,
}

impl Steering {
    /// Begins to steer by `plan`, whichever shard it is for; no shard has a socket yet.
    ///
    /// # Errors
    /// See [`SteerError`].
    pub fn start(plan: &MediaPlan) -> Result<Steering, SteerError> {
        let places = plan.addresses.len() as u32 * u32::from(plan.shards);
        let map = SocketMap::new(places).map_err(SteerError::new("make a map of sockets"))?;
        let code = program(plan, map.fd());
        let program = sys_bpf::load_sk_lookup(&code).map_err(SteerError::new("load a BPF program"))?;
        let failed = SteerError::new("open this thread's network namespace");
        let namespace = File::open("/proc/thread-self/ns/net").map_err(failed)?;
        let failed = SteerError::new("attach a BPF program to the network namespace");
        let attached = sys_bpf::attach_sk_lookup(program.as_fd(), namespace.as_fd()).map_err(failed)?;
        Ok(Steering { map, shards: plan.shards, _attached: attached })
    }

    fn key(&self, address: u16, shard: u16) -> u32 {
        u32::from(address) * u32::from(self.shards) + u32::from(shard)
    }

    /// From now on `socket` gets what is for the media ports of `shard` on service address number `address`.
    ///
    /// # Errors
    /// See [`SocketMap::insert`].
    pub fn begin(&self, address: u16, shard: u16, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.map.insert(self.key(address, shard), socket)
    }

    /// The shard's socket gets no more of it.
    ///
    /// # Errors
    /// See [`SocketMap::remove`].
    pub fn end(&self, address: u16, shard: u16) -> io::Result<()> {
        self.map.remove(self.key(address, shard))
    }
}

// Parts of operation codes of linux/bpf_common.h and linux/bpf.h: class, operation, source of the operand.
const LD_IMM64: u8 = 0x18;
const LDX_W: u8 = 0x61;
const STX_W: u8 = 0x63;
const ALU32: u8 = 0x04;
const ALU64: u8 = 0x07;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
const FROM_REGISTER: u8 = 0x08;
const ADD: u8 = 0x00;
const SUB: u8 = 0x10;
const MUL: u8 = 0x20;
const DIV: u8 = 0x30;
const RSH: u8 = 0x70;
const MOD: u8 = 0x90;
const MOV: u8 = 0xb0;
const JA: u8 = 0x00;
const JEQ: u8 = 0x10;
const JGE: u8 = 0x30;
const JNE: u8 = 0x50;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
const JLT: u8 = 0xa0;
/// Source register of [`LD_IMM64`]: the value is the descriptor of a map (`BPF_PSEUDO_MAP_FD`).
const MAP_FD: u8 = 1;

// Helper functions (bpf-helpers(7)).
const MAP_LOOKUP_ELEM: u32 = 1;
const SK_RELEASE: u32 = 86;
const SK_ASSIGN: u32 = 124;

// Offsets in `struct bpf_sk_lookup`; addresses are in network byte order, the local port in the host's.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;
const LOCAL_PORT: i16 = 60;

/// Let the lookup go on, with the socket that was assigned if one was (`SK_PASS`).
const PASS: u32 = 1;

/// A place in a program that jumps go to.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Label {
    /// The service address is known.
    Found,
    /// IPv4 addresses are compared.
    V4,
    /// The program leaves the datagram alone, or has chosen.
    Pass,
    /// The address after this one is compared.
    After(u16),
}

/// Instructions and the places their jumps go to.
#[derive(Default)]
struct Assembler {
    code: Vec<u64>,
    jumps: Vec<(usize, Label)>,
    labels: Vec<(Label, usize)>,
}

impl Assembler {
    /// `struct bpf_insn`: code, registers of 4 bits each, offset, immediate.
    fn emit(&mut self, code: u8, (to, from): (u8, u8), offset: i16, value: u32) {
        let registers = if cfg!(target_endian = "little") { to | from << 4 } else { to << 4 | from };
        let [low, high] = offset.to_ne_bytes();
        let [a, b, c, d] = value.to_ne_bytes();
        self.code.push(u64::from_ne_bytes([code, registers, low, high, a, b, c, d]));
    }

    fn jump(&mut self, code: u8, register: u8, value: u32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.emit(code, (register, 0), 0, value);
    }

    fn load(&mut self, to: u8, from: u8, offset: i16) {
        self.emit(LDX_W, (to, from), offset, 0);
    }

    /// On the lower half of a register; the upper one becomes 0.
    fn alu(&mut self, operation: u8, register: u8, value: u32) {
        self.emit(ALU32 | operation, (register, 0), 0, value);
    }

    fn copy(&mut self, to: u8, from: u8) {
        self.emit(ALU64 | MOV | FROM_REGISTER, (to, from), 0, 0);
    }

    fn call(&mut self, helper: u32) {
        self.emit(JMP | CALL, (0, 0), 0, helper);
    }

    fn place(&mut self, label: Label) {
        self.labels.push((label, self.code.len()));
    }

    /// The program with its jumps: each counts from the instruction after it.
    fn finish(mut self) -> Vec<u64> {
        for (at, label) in self.jumps {
            let (_, target) =
                self.labels.iter().find(|(known, _)| *known == label).expect("every label is placed");
            let mut bytes = self.code[at].to_ne_bytes();
            let offset = i16::try_from(target - at - 1).expect("so many addresses fit in no settings");
            bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
            self.code[at] = u64::from_ne_bytes(bytes);
        }
        self.code
    }
}

/// The program for a plan: registers 6 to 9 outlive calls.
fn program(plan: &MediaPlan, map: i32) -> Vec<u64> {
    let (context, port, address, stack) = (6, 7, 8, 10);
    let ports = &plan.ports;
    let mut asm = Assembler::default();
    asm.copy(context, 1);
    asm.load(2, context, PROTOCOL);
    asm.jump(JMP32 | JNE, 2, libc::IPPROTO_UDP as u32, Label::Pass);
    // The pair of ports it is in.
    let even = u32::from(ports.first).next_multiple_of(2);
    asm.load(port, context, LOCAL_PORT);
    asm.jump(JMP32 | JLT, port, even, Label::Pass);
    asm.alu(SUB, port, even);
    asm.alu(RSH, port, 1);
    asm.jump(JMP32 | JGE, port, u32::from(ports.pairs()), Label::Pass);
    // The number of the address.
    asm.load(2, context, FAMILY);
    asm.jump(JMP32 | JEQ, 2, libc::AF_INET as u32, Label::V4);
    asm.jump(JMP32 | JNE, 2, libc::AF_INET6 as u32, Label::Pass);
    (0..4).for_each(|word: u8| asm.load(2 + word, context, LOCAL_IP6 + 4 * i16::from(word)));
    for ((ip, _), number) in plan.addresses.iter().zip(0..) {
        let IpAddr::V6(ip) = ip else { continue };
        for (word, register) in ip.octets().chunks_exact(4).zip(2..) {
            let word = u32::from_ne_bytes(word.try_into().expect("4 bytes"));
            asm.jump(JMP32 | JNE, register, word, Label::After(number));
        }
        asm.alu(MOV, address, u32::from(number));
        asm.jump(JMP | JA, 0, 0, Label::Found);
        asm.place(Label::After(number));
    }
    asm.jump(JMP | JA, 0, 0, Label::Pass);
    asm.place(Label::V4);
    asm.load(2, context, LOCAL_IP4);
    for ((ip, _), number) in plan.addresses.iter().zip(0..) {
        let IpAddr::V4(ip) = ip else { continue };
        asm.jump(JMP32 | JNE, 2, u32::from_ne_bytes(ip.octets()), Label::After(number));
        asm.alu(MOV, address, u32::from(number));
        asm.jump(JMP | JA, 0, 0, Label::Found);
        asm.place(Label::After(number));
    }
    asm.jump(JMP | JA, 0, 0, Label::Pass);
    // The slot, its shard, and the shard's place in the map.
    asm.place(Label::Found);
    asm.alu(DIV, port, u32::from(ports.share_per_slot().max(1)));
    asm.alu(MUL, port, u32::from(ports.addresses));
    asm.emit(ALU32 | ADD | FROM_REGISTER, (port, address), 0, 0);
    asm.jump(JMP32 | JGE, port, u32::from(ports.slots), Label::Pass);
    asm.alu(MOD, port, u32::from(plan.shards));
    asm.alu(MUL, address, u32::from(plan.shards));
    asm.emit(ALU32 | ADD | FROM_REGISTER, (port, address), 0, 0);
    asm.emit(STX_W, (stack, port), -4, 0);
    asm.emit(LD_IMM64, (1, MAP_FD), 0, map as u32);
    asm.emit(0, (0, 0), 0, 0);
    asm.copy(2, stack);
    asm.emit(ALU64 | ADD, (2, 0), 0, -4_i32 as u32);
    asm.call(MAP_LOOKUP_ELEM);
    asm.jump(JMP | JEQ, 0, 0, Label::Pass);
    // If the socket cannot be assigned (another node on this machine was first), so be it.
    asm.copy(address, 0);
    asm.copy(1, context);
    asm.copy(2, address);
    asm.alu(MOV, 3, 0);
    asm.call(SK_ASSIGN);
    asm.copy(1, address);
    asm.call(SK_RELEASE);
    asm.place(Label::Pass);
    asm.alu(MOV, 0, PASS);
    asm.emit(JMP | EXIT, (0, 0), 0, 0);
    asm.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::media::MediaPorts;
    use std::net::SocketAddr;

    /// Runs a program for a datagram to `local` until it looks into the map: for which place, if it does. A machine for
    /// what [`program`] uses.
    fn run(code: &[u64], protocol: i32, local: SocketAddr) -> Option<u32> {
        let mut context = [0_u32; 17];
        let mut put = |offset: i16, value: u32| context[offset as usize / 4] = value;
        put(PROTOCOL, protocol as u32);
        put(LOCAL_PORT, local.port().into());
        match local.ip() {
            IpAddr::V4(ip) => {
                put(FAMILY, libc::AF_INET as u32);
                put(LOCAL_IP4, u32::from_ne_bytes(ip.octets()));
            }
            IpAddr::V6(ip) => {
                put(FAMILY, libc::AF_INET6 as u32);
                for (word, n) in ip.octets().chunks(4).zip(0..) {
                    put(LOCAL_IP6 + 4 * n, u32::from_ne_bytes(word.try_into().unwrap()));
                }
            }
        }
        let (mut registers, mut stored, mut at) = ([0_u32; 11], None, 0);
        loop {
            let [code, both, low, high, value @ ..] = code[at].to_ne_bytes();
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            let (offset, value) = (i16::from_ne_bytes([low, high]), u32::from_ne_bytes(value));
            let operand = if code & FROM_REGISTER != 0 { registers[from] } else { value };
            at += 1;
            let jumps = match (code & 7, code & 0xf0) {
                (1, _) => {
                    registers[to] = context[offset as usize / 4];
                    false
                }
                (3, _) => {
                    stored = Some(registers[from]);
                    false
                }
                (0, _) => return stored,
                (ALU32 | ALU64, operation) => {
                    let left = registers[to];
                    registers[to] = match operation {
                        ADD => left.wrapping_add(operand),
                        SUB => left - operand,
                        MUL => left * operand,
                        DIV => left / operand,
                        RSH => left >> operand,
                        MOD => left % operand,
                        MOV => operand,
                        _ => panic!("{code:#x}"),
                    };
                    false
                }
                (JMP, JA) => true,
                (JMP, EXIT) => {
                    assert_eq!(registers[0], PASS);
                    return None;
                }
                (JMP32, operation) => match operation {
                    JEQ => registers[to] == operand,
                    JNE => registers[to] != operand,
                    JGE => registers[to] >= operand,
                    JLT => registers[to] < operand,
                    _ => panic!("{code:#x}"),
                },
                _ => panic!("{code:#x}"),
            };
            at = if jumps { at.checked_add_signed(offset.into()).unwrap() } else { at };
        }
    }

    #[test]
    fn the_program_deals_ports_as_the_core_does() {
        let ips: [IpAddr; 4] =
            ["10.9.0.1", "fd99::1", "10.9.0.255", "fd99::1:1"].map(|ip| ip.parse().unwrap());
        let addresses: Vec<_> = ips.into_iter().zip([0, 1, 3, 4]).collect();
        for (first, last, slots, shards) in [(20_001, 20_900, 13, 3), (60_000, 65_535, 64, 1), (0, 299, 8, 5)]
        {
            let ports = MediaPorts { first, last, slots, addresses: 4 };
            ports.check().unwrap();
            let plan = MediaPlan { ports, addresses: addresses.clone(), shards, shard: 0 };
            let code = program(&plan, 77);
            for ((ip, _), number) in addresses.iter().zip(0_u16..) {
                for port in 0..=u16::MAX {
                    let slot = ports.slot_of(number, port);
                    let expected = slot.map(|slot| u32::from(number * shards + slot.0 % shards));
                    let found = run(&code, libc::IPPROTO_UDP, SocketAddr::new(*ip, port));
                    assert_eq!(found, expected, "{ip} {port}");
                }
            }
            let inside = first + 8;
            assert!(run(&code, libc::IPPROTO_UDP, SocketAddr::new(ips[0], inside)).is_some());
            assert_eq!(run(&code, libc::IPPROTO_TCP, SocketAddr::new(ips[0], inside)), None);
            for other in ["10.9.0.2", "fd99::2", "fd98::1", "::ffff:10.9.0.1"] {
                assert_eq!(
                    run(&code, libc::IPPROTO_UDP, SocketAddr::new(other.parse().unwrap(), inside)),
                    None
                );
            }
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let text =
            |errno| SteerError::new("load a BPF program")(io::Error::from_raw_os_error(errno)).to_string();
        let denied = text(libc::EPERM);
        for part in ["TANDEM_MEDIA_STEER=on: cannot load a BPF program", "CAP_BPF", "TANDEM_MEDIA_STEER=off"]
        {
            assert!(denied.contains(part), "{denied}");
        }
        assert!(text(libc::ENOSYS).contains("Linux 5.9"));
    }
}
