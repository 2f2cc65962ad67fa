//! Waiting for what must come, and no longer.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// What has not come by then will not: two meshes share two cores with whatever else runs.
const DEADLINE: Duration = Duration::from_secs(45);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Looks until `look` gives something.
///
/// # Panics
/// When nothing comes within 45 s.
pub async fn until<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(DEADLINE, what, look).await
}

/// Looks until `look` gives something.
///
/// # Panics
/// When nothing comes within `deadline`.
pub async fn until_within<T>(deadline: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(since.elapsed() < deadline, "not within {} s: {what}", deadline.as_secs_f64());
        sleep(LOOK).await;
    }
}
