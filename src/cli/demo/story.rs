//! When what happens in the demo. Pure.

use std::time::Duration;

/// How long the story takes at its usual pace; a shorter demo tells it faster.
const USUAL: Duration = Duration::from_secs(20);

/// In twentieths of the story.
const STEPS: [(u32, Step); 3] = [(5, Step::Cut), (11, Step::Heal), (14, Step::Command)];

/// Something that the demo does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The link is cut.
    Cut,
    /// The link is let through again.
    Heal,
    /// A command is sent.
    Command,
}

/// What is still to come.
#[derive(Debug)]
pub(super) struct Story {
    told: usize,
    pace: Duration,
    ends_after: Option<Duration>,
}

impl Story {
    /// A story that ends after so long, or never.
    pub(super) fn new(ends_after: Option<Duration>) -> Self {
        let length = ends_after.unwrap_or(USUAL).min(USUAL);
        Self { told: 0, pace: length / 20, ends_after }
    }

    /// The next step that is due when so much time has passed.
    pub(super) fn next(&mut self, passed: Duration) -> Option<Step> {
        let (at, step) = STEPS.get(self.told)?;
        if passed < self.pace * *at {
            return None;
        }
        self.told += 1;
        Some(*step)
    }

    pub(super) fn is_endless(&self) -> bool {
        self.ends_after.is_none()
    }

    pub(super) fn is_over(&self, passed: Duration) -> bool {
        self.ends_after.is_some_and(|end| passed >= end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(ends_after: Option<u64>, until: u64) -> Vec<(u64, Step)> {
        let mut story = Story::new(ends_after.map(Duration::from_secs));
        let mut told = Vec::new();
        for ms in (0..until * 1000).step_by(50) {
            let passed = Duration::from_millis(ms);
            if story.is_over(passed) {
                break;
            }
            told.extend(story.next(passed).map(|step| (ms, step)));
        }
        told
    }

    #[test]
    fn the_whole_story_fits_in_its_usual_time_and_comes_once() {
        let whole = vec![(5000, Step::Cut), (11_000, Step::Heal), (14_000, Step::Command)];
        assert_eq!(told(Some(30), 60), whole);
        assert_eq!(told(None, 600), whole);
    }

    #[test]
    fn a_short_demo_tells_all_of_it_faster() {
        let whole = vec![(2500, Step::Cut), (5500, Step::Heal), (7000, Step::Command)];
        assert_eq!(told(Some(10), 60), whole);
    }

    #[test]
    fn it_ends_only_where_an_end_was_asked_for() {
        let hours = Duration::from_secs(36_000);
        assert!(!Story::new(None).is_over(hours));
        let story = Story::new(Some(Duration::from_secs(7)));
        assert!(!story.is_over(Duration::from_millis(6999)) && story.is_over(hours));
    }
}
