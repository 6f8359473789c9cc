//! What a saga's stream says.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Event, Position};

/// What kind of failure a step met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The answer is no, and stays no: nothing has happened, and what was done before is undone.
    Business,
    /// Nothing has happened this time: it is tried again.
    Transient,
    /// It may have happened: whoever knows is asked, or the same is repeated under the same key.
    Unknown,
}

/// As what an operator declares an instance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All of it was done.
    Completed,
    /// All of it was undone.
    Compensated,
}

/// An event of an instance's own stream, `$<saga>-<id>`: its state and its audit. Stored for ever.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub enum SagaEvent {
    /// It began.
    SagaStarted {
        /// The version of the saga that runs it, to its end.
        definition: u32,
        /// What it was started with.
        input: Value,
        /// The steps that it had before it then.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        steps: Vec<String>,
    },
    /// A step began.
    StepStarted {
        /// The step.
        step: String,
        /// Until when, by the database's clock.
        deadline_at: DateTime<Utc>,
    },
    /// An attempt failed.
    StepFailed {
        /// The step.
        step: String,
        /// Which attempt, from 1.
        attempt: u32,
        /// What kind of failure it was.
        kind: FailureKind,
        /// What was said.
        error: String,
        /// Whether it may have happened, after all that is known.
        unknown: bool,
        /// Whether whoever was asked has not seen it, and may yet: it is repeated under its key.
        #[serde(default, skip_serializing_if = "is_not")]
        not_seen: bool,
        /// Whether its key is dead: it never will happen under that one, and what is tried from now on has another.
        #[serde(default)]
        key_is_dead: bool,
        /// When the next attempt is due; none if there is none.
        next_attempt_at: Option<DateTime<Utc>>,
    },
    /// A step's time is over.
    StepTimedOut {
        /// The step.
        step: String,
        /// Whether an attempt may still succeed.
        under_way: bool,
    },
    /// A step succeeded.
    StepCompleted {
        /// The step.
        step: String,
        /// What it came to, for later steps and undos.
        output: Value,
        /// Why an operator said so, if one did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by_hand: Option<String>,
    },
    /// A step was left out, or its undo was: its condition did not hold, or an operator said so.
    StepSkipped {
        /// The step.
        step: String,
        /// Why.
        reason: String,
    },
    /// An event that a step waits for, or will, has come.
    EventReceived {
        /// The step.
        step: String,
        /// Where the event stands in the log.
        position: Position,
        /// What the step takes from it.
        output: Value,
    },
    /// An event by which a step that waits, or will, has failed has come.
    EventRefused {
        /// The step.
        step: String,
        /// Where the event stands in the log.
        position: Position,
        /// Why it has failed by it.
        reason: String,
    },
    /// From here on, what was done is undone, the latest first.
    UndoBegan {
        /// The step that failed, if one did.
        step: Option<String>,
        /// Why.
        reason: String,
        /// Steps that waited for an event or a time, and are given up with this. A call is given up by an event of its own.
        abandoned: Vec<String>,
    },
    /// The undo of a step began.
    UndoStarted {
        /// The step.
        step: String,
    },
    /// An attempt to undo failed.
    UndoFailed {
        /// The step.
        step: String,
        /// Which attempt, from 1.
        attempt: u32,
        /// What kind of failure it was.
        kind: FailureKind,
        /// What was said.
        error: String,
        /// When the next attempt is due; none if there is none.
        next_attempt_at: Option<DateTime<Utc>>,
    },
    /// A step was undone.
    StepUndone {
        /// The step.
        step: String,
    },
    /// It cannot go on by itself.
    SagaStuck {
        /// The step it is stuck at, if it is one.
        step: Option<String>,
        /// Why, and what helps.
        reason: String,
        /// Whether attempts may have been under way, of which whoever recorded this could not say what they are about.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        interrupted: bool,
    },
    /// An operator had it go on, at once.
    SagaRetried {
        /// Why.
        reason: String,
    },
    /// It was called off: what was done is undone.
    SagaCancelled {
        /// Why.
        reason: String,
    },
    /// An operator declared it ended.
    SagaResolved {
        /// As what.
        outcome: Outcome,
        /// Why.
        reason: String,
    },
    /// All steps are done.
    SagaCompleted,
    /// All that was done is undone.
    SagaCompensated {
        /// Why it was.
        reason: String,
    },
}

impl Event for SagaEvent {}

fn is_not(said: &bool) -> bool {
    !*said
}
