//! What the engine knows of a saga's steps: their order and their rules, without what they do.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::state::State;
use crate::Target;

/// How often something is tried, and how long it waits in between.
///
/// The delay doubles up to the longest, and is shortened by up to a quarter, so that what failed together does not come back
/// together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How many attempts there are.
    pub attempts: u32,
    /// How long it waits after the first.
    pub first_delay: Duration,
    /// How long at most.
    pub longest_delay: Duration,
}

impl RetryPolicy {
    /// For steps: 10 attempts over some three minutes.
    pub const STEP: Self =
        Self { attempts: 10, first_delay: Duration::from_millis(500), longest_delay: Duration::from_secs(60) };
    /// For undos: 20 attempts over some six hours. What was done must be undone.
    pub const UNDO: Self =
        Self { attempts: 20, first_delay: Duration::from_millis(500), longest_delay: Duration::from_secs(3600) };
    /// One attempt. What may have happened is asked, and never repeated.
    pub const NEVER: Self = Self { attempts: 1, ..Self::STEP };

    /// `attempts` of them, the first again after `first_delay`.
    pub const fn new(attempts: u32, first_delay: Duration) -> Self {
        Self { attempts, first_delay, ..Self::STEP }
    }

    /// How long to wait after the failure of attempt `attempt`; none if it was the last. `seed` shortens it.
    pub(crate) fn delay(&self, attempt: u32, seed: u64) -> Option<Duration> {
        if attempt >= self.attempts {
            return None;
        }
        let doubled = self.first_delay.saturating_mul(1 << attempt.saturating_sub(1).min(20));
        Some(doubled.min(self.longest_delay).mul_f64(1.0 - (seed % 256) as f64 / 1024.0))
    }
}

/// A rule that looks at the instance's input and outputs. An error is one that neither can be read by this build.
pub(crate) type Rule<T> = Box<dyn Fn(&State) -> Result<T, String> + Send + Sync>;

pub(crate) enum Kind {
    /// Does something, whose outcome may stay unknown.
    Call {
        /// Whether somebody can be asked what became of it.
        asks: bool,
    },
    /// One command of an aggregate, which commits with the step.
    Command,
    /// Ends by an event, or by its deadline.
    Wait {
        in_vain: InVain,
        /// Whether an event can end it.
        takes: bool,
    },
}

/// What becomes of a wait to which nothing came.
pub(crate) enum InVain {
    Fails,
    /// Somebody is to look.
    Stuck,
    /// It goes on with this.
    GoesOn(Rule<Value>),
}

pub(crate) struct Planned {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) has_undo: bool,
    /// Whether the undo is one command, which commits with it.
    pub(crate) undo_commits: bool,
    pub(crate) retry: RetryPolicy,
    pub(crate) undo_retry: RetryPolicy,
    pub(crate) timeout: Duration,
    /// How long one attempt may take.
    pub(crate) attempt_timeout: Duration,
    /// Whom it calls.
    pub(crate) target: Option<Target>,
    pub(crate) when: Option<Rule<bool>>,
    /// For one that ends at a time that depends on the instance.
    pub(crate) until: Option<Rule<DateTime<Utc>>>,
}

impl Planned {
    /// Whether an event can end it.
    pub(crate) fn takes_events(&self) -> bool {
        matches!(self.kind, Kind::Wait { takes: true, .. })
    }
}

/// The steps in order; those of one stage run at once.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) stages: Vec<Vec<Planned>>,
}

impl Plan {
    pub(crate) fn steps(&self) -> impl Iterator<Item = &Planned> {
        self.stages.iter().flatten()
    }

    pub(crate) fn step(&self, name: &str) -> Option<&Planned> {
        self.steps().find(|step| step.name == name)
    }

    /// The stage of the step `name`.
    pub(super) fn stage_of(&self, name: &str) -> Option<usize> {
        self.stages.iter().position(|stage| stage.iter().any(|step| step.name == name))
    }
}
