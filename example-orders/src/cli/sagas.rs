//! What can be typed about sagas and circuit breakers.

use std::{fmt, time::Duration};

use annals::{Outcome, SagaFilter, SagaState};
use clap::{Args, Subcommand, ValueEnum};
use uuid::Uuid;

use super::{Reasoned, Signature};

/// What is done about sagas.
#[derive(Debug, Subcommand)]
pub(crate) enum SagaCommand {
    /// Shows instances, those that began first first.
    List {
        #[command(flatten)]
        filter: Filter,
        /// How many at most.
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        /// A line of JSON an instance instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Shows all that has happened to an instance.
    Show {
        #[command(flatten)]
        instance: Instance,
        /// A line of JSON an event instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Shows how many instances of each saga run, are completed, compensated or stuck.
    Summary {
        /// One line of JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Lets an instance go on at once that is stuck, or that waits for its next attempt; or all that are stuck. Takes a --reason.
    Retry {
        /// The saga.
        saga: String,
        /// The instance.
        #[arg(required_unless_present = "all")]
        id: Option<String>,
        /// All that are stuck.
        #[arg(long, conflicts_with = "id")]
        all: bool,
        /// Of all, those that are stuck at this step.
        #[arg(long, requires = "all")]
        step: Option<String>,
        /// Of all, those with this in the reason why they are stuck.
        #[arg(long, requires = "all", value_name = "TEXT")]
        because: Option<String>,
        #[command(flatten)]
        by: Reasoned,
    },
    /// Lets an instance leave out a step, or its undo, at which it is: somebody has seen to it. Takes a --reason.
    Skip {
        #[command(flatten)]
        instance: Instance,
        /// The step.
        step: String,
        #[command(flatten)]
        by: Reasoned,
    },
    /// Says that a step happened of which nobody knows, and what it came to; it goes on from there. Takes a --reason.
    Complete {
        #[command(flatten)]
        instance: Instance,
        /// The step.
        step: String,
        /// What it came to, as JSON; `null` for nothing.
        #[arg(value_parser = json)]
        output: serde_json::Value,
        #[command(flatten)]
        by: Reasoned,
    },
    /// Says that a step did not happen and will not, of which nobody knows; it is tried again under a new key, or counts as not done if
    /// the instance undoes. Takes a --reason.
    NotDone {
        #[command(flatten)]
        instance: Instance,
        /// The step.
        step: String,
        #[command(flatten)]
        by: Reasoned,
    },
    /// Declares an instance ended: nothing more is done for it, and a step that succeeds late is not undone, either. Takes a --reason.
    Resolve {
        #[command(flatten)]
        instance: Instance,
        /// As what it ended.
        #[arg(long = "as", value_name = "OUTCOME")]
        outcome: Ended,
        #[command(flatten)]
        by: Reasoned,
    },
    /// Calls an instance off: what it did is undone. Takes a --reason.
    Cancel {
        #[command(flatten)]
        instance: Instance,
        #[command(flatten)]
        by: Reasoned,
    },
    /// Lets no instance of a saga begin or go on, until it is resumed.
    Pause {
        /// The saga.
        saga: String,
        #[command(flatten)]
        by: Signature,
    },
    /// Lets a saga go on that was paused or that halted.
    Resume {
        /// The saga.
        saga: String,
        #[command(flatten)]
        by: Signature,
    },
}

impl SagaCommand {
    /// Refuses what lacks something, before anything is opened.
    ///
    /// # Errors
    /// There is no reason for what needs one.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::Retry { by, .. }
            | Self::Skip { by, .. }
            | Self::Complete { by, .. }
            | Self::NotDone { by, .. }
            | Self::Resolve { by, .. }
            | Self::Cancel { by, .. } => by.check(),
            _ => Ok(()),
        }
    }
}

/// What is done about circuit breakers.
#[derive(Debug, Subcommand)]
pub(crate) enum BreakerCommand {
    /// Shows who is called, by which process, and whether at present.
    List {
        /// A line of JSON a breaker instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Lets nobody call a target until its breakers are closed. Takes a --reason.
    Open {
        /// Whom not to call.
        target: String,
        #[command(flatten)]
        by: Reasoned,
    },
    /// Lets everybody call a target again, at once. Takes a --reason.
    Close {
        /// Whom to call.
        target: String,
        #[command(flatten)]
        by: Reasoned,
    },
}

impl BreakerCommand {
    /// Refuses what lacks something, before anything is opened.
    ///
    /// # Errors
    /// There is no reason for what needs one.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::Open { by, .. } | Self::Close { by, .. } => by.check(),
            Self::List { .. } => Ok(()),
        }
    }
}

/// An instance of a saga.
#[derive(Debug, Args)]
pub(crate) struct Instance {
    /// The saga.
    pub(crate) saga: String,
    /// The instance.
    pub(crate) id: String,
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.saga, self.id)
    }
}

/// As what an operator declares an instance ended.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Ended {
    /// All of it was done.
    Completed,
    /// All of it was undone.
    Compensated,
}

impl From<Ended> for Outcome {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Completed => Self::Completed,
            Ended::Compensated => Self::Compensated,
        }
    }
}

/// Which instances.
#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// Those of this saga.
    saga: Option<String>,
    /// Those in this state; several may be given.
    #[arg(long, value_parser = state)]
    state: Vec<SagaState>,
    /// Those at this step.
    #[arg(long)]
    step: Option<String>,
    /// Those that began at least so long ago, such as 30s, 10m, 2h or 7d.
    #[arg(long, value_name = "AGE", value_parser = age)]
    older_than: Option<Duration>,
    /// Those of this correlation.
    #[arg(long, value_name = "ID")]
    correlation: Option<Uuid>,
    /// Those with this in their id.
    #[arg(long)]
    id: Option<String>,
    /// Those with this in the reason why they are stuck, undo, or were undone.
    #[arg(long, value_name = "TEXT")]
    because: Option<String>,
    /// Those that this version of the saga runs.
    #[arg(long, value_name = "N")]
    version: Option<u32>,
}

impl From<Filter> for SagaFilter {
    fn from(Filter { saga, state, step, older_than, correlation, id, because, version }: Filter) -> Self {
        Self {
            saga,
            states: state,
            step,
            correlation_id: correlation,
            older_than,
            id,
            version,
            reason: because,
            after: None,
        }
    }
}

fn json(text: &str) -> Result<serde_json::Value, String> {
    serde_json::from_str(text)
        .map_err(|error| format!("what a step came to is JSON, such as null or {{\"id\":\"charge-1\"}}: {error}"))
}

fn state(text: &str) -> Result<SagaState, String> {
    SagaState::named(text)
        .ok_or_else(|| "a state is one of early, running, undoing, stuck, completed, compensated".into())
}

fn age(text: &str) -> Result<Duration, String> {
    let seconds = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)].into_iter().find_map(|(unit, seconds)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(seconds).filter(|seconds| *seconds <= 100 * 366 * 86_400)
    });
    seconds.map(Duration::from_secs).ok_or_else(|| "an age is a number and s, m, h or d, such as 10m".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_states_are_what_they_say() {
        assert_eq!(["30s", "10m", "2h", "7d"].map(|text| age(text).unwrap().as_secs()), [30, 600, 7_200, 604_800]);
        assert!(["", "10", "m", "-1m", "1.5h", "99999999999999d", "1µ"].iter().all(|text| age(text).is_err()));
        assert_eq!(state("stuck"), Ok(SagaState::Stuck));
        assert!(state("lost").is_err());
    }
}
