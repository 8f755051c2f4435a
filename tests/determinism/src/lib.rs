//! Chance from a seed for everything in a thread that asks the operating system for it: the hashes of `HashMap`s above all,
//! by which kube's controllers choose who is next. The simulation of the product needs it, so that a seed is one story.
//!
//! It is a package of its own because it takes the place of a function of the C library, which is unsafe code; the product
//! forbids that for itself, and does not link this.

use std::cell::Cell;
use std::ffi::{c_uint, c_void};

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on this thread draws from that seed. Only what was not drawn before is another: begin a thread with it.
pub fn seed(seed: u64) {
    // The linker takes the function below only where it is used.
    std::hint::black_box(getrandom as unsafe extern "C" fn(*mut c_void, usize, c_uint) -> isize);
    STATE.set(Some(seed));
}

/// The next eight bytes (splitmix64).
fn draw(state: u64) -> (u64, u64) {
    let next = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = next;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (next, z ^ (z >> 31))
}

/// Stands for that of the C library. Threads without a seed read the operating system's chance.
///
/// # Safety
///
/// `buffer` must be `length` bytes that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    // SAFETY: the caller promises it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    let seeded = STATE.try_with(Cell::get).ok().flatten();
    let Some(mut state) = seeded else { return from_the_system(bytes) };
    for chunk in bytes.chunks_mut(8) {
        let drawn;
        (state, drawn) = draw(state);
        chunk.copy_from_slice(&drawn.to_le_bytes()[..chunk.len()]);
    }
    let _ = STATE.try_with(|own| own.set(Some(state)));
    isize::try_from(length).unwrap_or(isize::MAX)
}

fn from_the_system(bytes: &mut [u8]) -> isize {
    use std::io::Read;
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read(bytes));
    read.ok().and_then(|n| isize::try_from(n).ok()).unwrap_or(-1)
}
