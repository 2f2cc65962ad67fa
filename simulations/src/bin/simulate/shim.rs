//! Deterministic libc: randomness and clocks of this process, below everything that asks for them.
//!
//! `rand`, the hash maps' keys and tokio's own dice all end at getrandom or a clock. The symbols below
//! win over libc's, because the linker resolves references against the program's own objects first.
//! Addresses would be a second source (some hashers seed themselves with one), so the program starts
//! itself again without address-space randomisation. This file is linked into this binary alone.

#![expect(unsafe_code, reason = "it takes the place of functions of libc")]

use std::ffi::CStr;
use std::os::unix::process::CommandExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

static ON: AtomicBool = AtomicBool::new(false);
static STATE: AtomicU64 = AtomicU64::new(0);
/// Said to the copy of this process that runs without randomised addresses.
const STARTED_AGAIN: &str = "MAILLAGE_SIMULATE_STARTED_AGAIN";

/// From here on this process's randomness comes from `seed`, and its clocks stand still.
pub(crate) fn enable(seed: u64) {
    STATE.store(seed, Relaxed);
    ON.store(true, Relaxed);
}

/// Starts this program again without address-space randomisation, unless it runs so already.
pub(crate) fn fix_addresses() {
    /// Asks `personality` for the current value.
    const ASK: libc::c_ulong = 0xffff_ffff;
    // SAFETY: personality takes a number and touches no memory.
    let now = unsafe { libc::personality(ASK) };
    if now < 0 || now & libc::ADDR_NO_RANDOMIZE != 0 || std::env::var_os(STARTED_AGAIN).is_some() {
        return;
    }
    let without = libc::c_ulong::from(now.cast_unsigned() | libc::ADDR_NO_RANDOMIZE.cast_unsigned());
    // SAFETY: as above.
    if unsafe { libc::personality(without) } < 0 {
        eprintln!("addresses stay random: runs may differ in the order of some hash maps");
        return;
    }
    let error =
        std::process::Command::new("/proc/self/exe").args(std::env::args_os().skip(1)).env(STARTED_AGAIN, "1").exec();
    eprintln!("start again without random addresses: {error}");
}

/// Real time, for measuring the simulator itself.
pub(crate) fn real_now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    unsafe { real_clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn next() -> u64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let z = STATE.fetch_add(STEP, Relaxed).wrapping_add(STEP);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// # Safety
/// `buffer` must be valid for writes of `len` bytes.
unsafe fn fill(buffer: *mut u8, len: usize) {
    let mut at = 0;
    while at < len {
        let word = next().to_le_bytes();
        let count = word.len().min(len - at);
        // SAFETY: `at + count` is at most `len`.
        unsafe { std::ptr::copy_nonoverlapping(word.as_ptr(), buffer.add(at), count) };
        at += count;
    }
}

/// The next definition of a symbol: libc's.
fn libcs(cache: &AtomicUsize, name: &CStr) -> usize {
    let known = cache.load(Relaxed);
    if known != 0 {
        return known;
    }
    // SAFETY: the name is a C string; RTLD_NEXT is a valid handle.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) } as usize;
    assert!(found != 0, "libc lacks a function that it must have");
    cache.store(found, Relaxed);
    found
}

/// # Safety
/// As clock_gettime(2).
unsafe fn real_clock_gettime(id: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    type Function = unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> libc::c_int;
    static CACHE: AtomicUsize = AtomicUsize::new(0);
    // SAFETY: the symbol has this signature.
    unsafe { std::mem::transmute::<usize, Function>(libcs(&CACHE, c"clock_gettime"))(id, time) }
}

/// getrandom(2).
///
/// # Safety
/// `buffer` must be valid for writes of `len` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn getrandom(buffer: *mut u8, len: usize, flags: u32) -> isize {
    type Function = unsafe extern "C" fn(*mut u8, usize, u32) -> isize;
    static CACHE: AtomicUsize = AtomicUsize::new(0);
    if ON.load(Relaxed) {
        // SAFETY: the caller's promise.
        unsafe { fill(buffer, len) };
        return len.cast_signed();
    }
    // SAFETY: the symbol has this signature; the rest is the caller's promise.
    unsafe { std::mem::transmute::<usize, Function>(libcs(&CACHE, c"getrandom"))(buffer, len, flags) }
}

/// getentropy(3).
///
/// # Safety
/// `buffer` must be valid for writes of `len` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn getentropy(buffer: *mut u8, len: usize) -> libc::c_int {
    // SAFETY: the caller's promise.
    if unsafe { getrandom(buffer, len, 0) } < 0 { -1 } else { 0 }
}

/// syscall(2): some crates ask for randomness through it. Everything else passes.
///
/// # Safety
/// As syscall(2).
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn syscall(
    number: libc::c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> libc::c_long {
    type Function = unsafe extern "C" fn(libc::c_long, ...) -> libc::c_long;
    static CACHE: AtomicUsize = AtomicUsize::new(0);
    if number == libc::SYS_getrandom && ON.load(Relaxed) {
        // SAFETY: the caller's promise: a pointer and a length.
        unsafe { fill(a as *mut u8, b) };
        return libc::c_long::try_from(b).unwrap_or(libc::c_long::MAX);
    }
    // SAFETY: the symbol has this signature; the rest is the caller's promise.
    unsafe { std::mem::transmute::<usize, Function>(libcs(&CACHE, c"syscall"))(number, a, b, c, d, e, f) }
}

/// clock_gettime(2). Simulated time is tokio's; whoever asks libc gets a clock that stands still.
///
/// # Safety
/// `time` must be valid for a write.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn clock_gettime(id: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    /// 2026-01-01T00:00:00Z.
    const WALL_S: libc::time_t = 1_767_225_600;
    const MONOTONIC_S: libc::time_t = 100_000;
    if ON.load(Relaxed) {
        let wall = matches!(id, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE);
        let tv_sec = if wall { WALL_S } else { MONOTONIC_S };
        // SAFETY: the caller's promise.
        unsafe { time.write(libc::timespec { tv_sec, tv_nsec: 0 }) };
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe { real_clock_gettime(id, time) }
}
