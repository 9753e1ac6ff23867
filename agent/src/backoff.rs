//! Full jitter: a random wait within a window that doubles from 1 s to 30 s. After an operator's restart ten thousand
//! agents come back spread over the window instead of at once.

use std::time::Duration;

const FIRST_WINDOW_MS: u64 = 1_000;
const LAST_WINDOW_MS: u64 = 30_000;

/// The waits of one loop.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait, somewhere in the window.
    pub fn wait(&mut self) -> Duration {
        Duration::from_millis(rand::random_range(0..=self.window()))
    }

    /// It worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    fn window(&mut self) -> u64 {
        let window = FIRST_WINDOW_MS.saturating_mul(1 << self.failures.min(10)).min(LAST_WINDOW_MS);
        self.failures = self.failures.saturating_add(1);
        window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_doubles_to_its_cap_and_starts_over_after_success() {
        let mut backoff = Backoff::default();
        let windows: Vec<u64> = (0..7).map(|_| backoff.window()).collect();
        assert_eq!(windows, [1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        backoff.reset();
        assert!(backoff.wait() <= Duration::from_secs(1));
    }
}
