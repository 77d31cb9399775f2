//! Letting go of what is held, by an operator's word.

use std::io;

use super::{Disk, Spool};

impl<D: Disk> Spool<D> {
    /// Lets go of everything that a stream holds, as `evicted` skips: whoever reads on learns of
    /// each number that is gone. Says how many records that is.
    ///
    /// # Errors
    /// The skips could not be written: nothing is lost.
    pub fn evict_all(&mut self, stream: usize) -> io::Result<u64> {
        let before = self.streams[stream].logs.clone();
        let mut records = 0;
        for log in &mut self.streams[stream].logs {
            let (from, to) = (log.acked + 1, log.next);
            records += if from < to { log.add_skip(from, to, "evicted") } else { 0 };
        }
        if let Err(error) = self.save_positions() {
            self.streams[stream].logs = before;
            return Err(error);
        }
        for log in before {
            for _ in &log.segments {
                self.unlink_oldest(stream, log.epoch);
            }
        }
        Ok(records)
    }
}
