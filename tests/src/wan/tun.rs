//! A TUN device: the kernel's side is a network card of a namespace, ours a descriptor that gives and
//! takes whole IP packets (Linux, `Documentation/networking/tuntap.rst`).

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Where the kernel makes them.
pub(super) const DEVICE: &str = "/dev/net/tun";
/// The device's name in its namespace.
pub(super) const NAME: &str = "wan0";
/// Bytes of a packet: Ethernet's, as on most paths.
pub(super) const MTU: usize = 1500;

/// `TUNSETIFF` of `linux/if_tun.h`: `_IOW('T', 202, int)`.
const SET_INTERFACE: rustix::ioctl::Opcode = 0x4004_54ca;
/// `IFF_TUN | IFF_NO_PI` of the same: IP packets, and nothing before them.
const FLAGS: u16 = 0x0001 | 0x1000;
/// `sizeof(struct ifreq)`: the name's 16 bytes, then a union that begins with the flags.
const REQUEST_LEN: usize = 40;
const NAME_LEN: usize = 16;

/// Opens a new device in the calling thread's namespace.
pub(super) fn open() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = rustix::fs::open(DEVICE, flags, Mode::empty())?;
    let mut request = [0_u8; REQUEST_LEN];
    request[..NAME.len()].copy_from_slice(NAME.as_bytes());
    request[NAME_LEN..NAME_LEN + 2].copy_from_slice(&FLAGS.to_ne_bytes());
    set_interface(&device, request)?;
    Ok(device)
}

#[expect(unsafe_code, reason = "there is no safe call for this ioctl")]
fn set_interface(device: &OwnedFd, request: [u8; REQUEST_LEN]) -> Result<(), Errno> {
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, which is what `request` has the size of;
    // `Setter` keeps it alive and in place for the call, and nothing reads what the kernel writes back.
    unsafe {
        let ioctl = rustix::ioctl::Setter::<SET_INTERFACE, [u8; REQUEST_LEN]>::new(request);
        rustix::ioctl::ioctl(device, ioctl)
    }
}
