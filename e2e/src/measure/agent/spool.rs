//! How long it takes to have an event on the disk.

use std::{path::Path, time::Instant};

use miglet_agent::spool::{SIZE, open};

use super::median;
use crate::world::Trouble;

const APPENDS: u64 = 500;
/// An event with a job.
const EVENT: [u8; 200] = [7; 200];

/// Milliseconds to append one, the median.
pub(super) fn measure(folder: &Path) -> Result<f64, Trouble> {
    let mut spool = open(&folder.join("spool/events.spool"), "boot", SIZE).spool.ok_or("there is no spool")?;
    let mut times = Vec::new();
    for sequence in 1..=APPENDS {
        let begun = Instant::now();
        spool.append(sequence, &EVENT, false)?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(median(times))
}
