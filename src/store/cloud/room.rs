//! Room for parts on their way: of all stores of the process together, because its memory is one.

use std::sync::{Condvar, Mutex, PoisonError};

/// Given back when it is dropped.
pub(in crate::store) struct Room {
    bytes: u64,
}

/// Waits until there is room. A part that is larger than all of it goes alone.
pub(in crate::store) fn take(bytes: u64) -> Room {
    let bytes = bytes.min(ROOM_BYTES);
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    while *free < bytes {
        free = CHANGED.wait(free).unwrap_or_else(PoisonError::into_inner);
    }
    *free -= bytes;
    Room { bytes }
}

impl Drop for Room {
    fn drop(&mut self) {
        *FREE.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        CHANGED.notify_all();
    }
}

/// Six parts of the usual size: enough to fill a network, and half of what the daemon may use.
const ROOM_BYTES: u64 = 48 << 20;

static FREE: Mutex<u64> = Mutex::new(ROOM_BYTES);
static CHANGED: Condvar = Condvar::new();
