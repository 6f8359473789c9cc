//! What a follower does about an event that fails.

use std::time::Duration;

/// What becomes of an event that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// It is parked, and the later events of its key behind it; all other keys go on. It is tried again until
    /// [`FailurePolicy::attempts`] have failed, and then waits for an operator.
    Park,
    /// The follower stays before it, tries again, and halts after [`FailurePolicy::attempts`]: for a model in which no gap
    /// is bearable.
    Halt,
}

/// What a follower does about events that fail, and how often it tries.
///
/// ```
/// use annals::FailurePolicy;
///
/// const PATIENT: FailurePolicy = FailurePolicy { attempts: 10, ..FailurePolicy::PARK };
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FailurePolicy {
    /// Whether a failing event is parked or halts the follower.
    pub on_failure: OnFailure,
    /// How often an event is tried before only an operator tries it again; at most 1,000.
    pub attempts: u32,
    /// How long it waits after the first failure.
    pub first_delay: Duration,
    /// How much longer after each further one.
    pub factor: f64,
    /// How long at most.
    pub ceiling: Duration,
    /// By which share a delay is made longer or shorter at random, 0 to 1.
    pub jitter: f64,
    /// How long the handler may take for one batch of events before it counts as hung.
    pub deadline: Duration,
    /// From which share of events on that fail alike, 0 to 1, this is a storm: the follower halts instead of parking them.
    pub storm_share: f64,
    /// Of how many such failures at least.
    pub storm_events: u32,
}

impl FailurePolicy {
    /// Parks what fails: 5 attempts over some 3 s, a deadline of 60 s, a storm from half of the events and 100 on.
    pub const PARK: Self = Self {
        on_failure: OnFailure::Park,
        attempts: 5,
        first_delay: Duration::from_millis(200),
        factor: 2.0,
        ceiling: Duration::from_secs(60),
        jitter: 0.2,
        deadline: Duration::from_secs(60),
        storm_share: 0.5,
        storm_events: 100,
    };
    /// Halts at what fails, after 5 attempts over some 3 s.
    pub const HALT: Self = Self { on_failure: OnFailure::Halt, ..Self::PARK };

    /// How long to wait after `attempts` failures; none when nothing is to be tried any more.
    pub(crate) fn delay(&self, attempts: u32) -> Option<Duration> {
        if attempts >= self.attempts.min(1_000) {
            return None;
        }
        let exponent = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
        let delay = self.first_delay.as_secs_f64() * self.factor.max(1.0).powi(exponent);
        let delay = delay.min(self.ceiling.as_secs_f64()).min(86_400.0);
        let chance = chance() * 2.0 - 1.0;
        Some(Duration::from_secs_f64((delay * (1.0 + chance * self.jitter.clamp(0.0, 1.0))).max(0.001)))
    }
}

/// A number from 0 to 1, from the random end of a new id.
fn chance() -> f64 {
    let [.., high, low] = *uuid::Uuid::now_v7().as_bytes();
    f64::from(u16::from_be_bytes([high, low])) / f64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::FailurePolicy;

    #[test]
    fn delays_grow_by_the_factor_up_to_the_ceiling_and_end_with_the_attempts() {
        let policy =
            FailurePolicy { jitter: 0.0, attempts: 4, ceiling: Duration::from_millis(500), ..FailurePolicy::PARK };
        let delays = [1, 2, 3, 4, 5].map(|attempts| policy.delay(attempts));

        let [first, second, third] = [200, 400, 500].map(|delay| Some(Duration::from_millis(delay)));
        assert_eq!(delays, [first, second, third, None, None]);
    }

    #[test]
    fn a_delay_with_jitter_stays_within_its_share() {
        let policy = FailurePolicy { jitter: 0.5, ..FailurePolicy::PARK };

        for _ in 0..100 {
            let delay = policy.delay(1).unwrap().as_secs_f64();
            assert!((0.1..=0.3).contains(&delay), "{delay}");
        }
    }
}
