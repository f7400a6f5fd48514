//! The promise of memory: no more than four times the file and 64 MiB, whatever the file says. Live bytes are counted, and an allocation that would
//! break the promise fails on the spot, so that the report shows who asked for it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

const TIMES: usize = 4;
const BESIDES: usize = 64 << 20;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);
static BROKEN: AtomicBool = AtomicBool::new(false);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every request goes to the system's allocator with its own layout, or is answered with null, as an allocator may; the counters do not
// touch memory that is handed out. Every run of every target tests it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !admitted(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !admitted(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Large blocks are moved by their pages: old and new do not stand side by side.
        if size > layout.size() && !admitted(size - layout.size()) {
            return std::ptr::null_mut();
        }
        LIVE.fetch_sub(layout.size().saturating_sub(size), Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(place, layout) }
    }
}

fn admitted(size: usize) -> bool {
    let live = LIVE.fetch_add(size, Relaxed).saturating_add(size);
    if live <= LIMIT.load(Relaxed) {
        return true;
    }
    LIVE.fetch_sub(size, Relaxed);
    // Whoever is refused will report it, and needs memory for that.
    LIMIT.store(usize::MAX, Relaxed);
    BROKEN.store(true, Relaxed);
    false
}

/// Runs a target on a file of so many bytes; ends the process where it takes more memory than is promised.
pub fn within_promise(file_bytes: usize, run: impl FnOnce()) {
    static HOOK: Once = Once::new();
    HOOK.call_once(report_panics);
    let limit = TIMES * file_bytes + BESIDES;
    LIMIT.store(LIVE.load(Relaxed).saturating_add(limit), Relaxed);
    run();
    LIMIT.store(usize::MAX, Relaxed);
    // Whoever asks for memory and takes no for an answer has still asked for it.
    assert!(!BROKEN.load(Relaxed), "more than {limit} bytes of memory for a file of {file_bytes}");
}

/// libFuzzer ends the process at a panic, caught or not. The one that may be caught is that of the decoder of JPEG 2000 (`stages/dicom/jpeg2000.rs`): C
/// turned into Rust, whose checks of bounds are panics.
fn report_panics() {
    let ends = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let is_of_decoder = panic.location().is_some_and(|l| ["/openjp2-", "/jpeg2k-"].iter().any(|name| l.file().contains(name)));
        if !is_of_decoder {
            // The report needs memory of its own.
            LIMIT.store(usize::MAX, Relaxed);
            ends(panic);
        }
    }));
}
