//! An upper bound on what this machine sends, over all links and uploads together.
//!
//! A pacer hands out moments: whoever wants to send a message reserves room for it and waits until
//! the moment it is given. It keeps no queue and knows nothing of what is sent.
//!
//! Invariant: over any stretch of time, what was let through is at most the rate times that
//! stretch plus one burst.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What may go out at once after a pause: smooths over the timer's coarseness.
const BURST: Duration = Duration::from_millis(50);

/// Paces all bulk data that leaves a volunteer.
#[derive(Debug)]
pub struct Pacer {
    bytes_per_second: u64,
    /// When everything reserved so far will have left at the given rate.
    booked_until: Mutex<Instant>,
}

impl Pacer {
    /// At most `bytes_per_second`, which must not be zero.
    pub fn new(bytes_per_second: u64) -> Self {
        assert!(bytes_per_second > 0, "a rate of zero sends nothing, ever");
        Self {
            bytes_per_second,
            booked_until: Mutex::new(Instant::now()),
        }
    }

    /// When a message of so many bytes may leave.
    fn reserve(&self, len_bytes: usize, now: Instant) -> Instant {
        let takes = Duration::from_secs_f64(len_bytes as f64 / self.bytes_per_second as f64);
        let mut booked = self
            .booked_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let start = (*booked).max(now.checked_sub(BURST).unwrap_or(now));
        *booked = start + takes;
        start
    }

    /// Waits until a message of so many bytes may leave.
    pub async fn admit(&self, len_bytes: usize) {
        tokio::time::sleep_until(self.reserve(len_bytes, Instant::now())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_passes_than_the_rate_allows_after_one_burst() {
        let pacer = Pacer::new(1_000_000);
        let start = Instant::now() + Duration::from_secs(10);
        let last = (0..100)
            .map(|_| pacer.reserve(20_000, start))
            .last()
            .expect("100 reservations");
        // 99 messages of 20 ms each lie before the last one; 50 ms of them were a burst.
        assert_eq!(last, start + Duration::from_millis(99 * 20 - 50));
    }
}
