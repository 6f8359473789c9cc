//! The story of an instance of a saga, as its own stream tells it.

use std::collections::HashMap;

use annals::{FailureKind, Outcome, Recorded, SagaEvent, StepKeys};
use chrono::{DateTime, TimeDelta, Utc};
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;
use uuid::Uuid;

use crate::tables::table;

/// One thing that happened to an instance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Moment {
    pub(crate) at: DateTime<Utc>,
    pub(crate) version: i64,
    pub(crate) event_type: String,
    pub(crate) what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) step: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<FailureKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// What it came to; of the first, what it began with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output: Option<serde_json::Value>,
    /// What the step, or its undo, is known by outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_attempt_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deadline_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) actor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

impl Moment {
    /// What `recorded` says.
    pub(crate) fn of(recorded: &Recorded<SagaEvent>) -> Self {
        let mut moment = Self {
            at: recorded.recorded_at,
            version: recorded.version.get(),
            event_type: recorded.event_type.to_string(),
            what: recorded.event_type.to_string(),
            step: None,
            attempt: None,
            kind: None,
            error: None,
            output: None,
            key: None,
            next_attempt_at: None,
            deadline_at: None,
            actor: recorded.metadata.actor.clone(),
            reason: None,
        };
        let what = match &recorded.event {
            SagaEvent::SagaStarted { input, .. } => {
                moment.output = Some(input.clone());
                "started"
            }
            SagaEvent::StepStarted { step, deadline_at } => {
                moment.deadline_at = Some(*deadline_at);
                moment.at_step(step, "begun")
            }
            SagaEvent::StepFailed { step, attempt, kind, error, unknown, next_attempt_at, key_is_dead, not_seen } => {
                moment.failed(*attempt, *kind, error, *next_attempt_at);
                let what = match (unknown, key_is_dead) {
                    _ if *not_seen => "not seen, may yet happen",
                    (true, _) => "failed, outcome not known",
                    (false, true) => "did not happen",
                    (false, false) => "failed",
                };
                moment.at_step(step, what)
            }
            SagaEvent::StepTimedOut { step, .. } => moment.at_step(step, "timed out"),
            SagaEvent::StepCompleted { step, by_hand, output } => {
                moment.output = Some(output.clone()).filter(|output| !output.is_null());
                moment.reason = by_hand.clone();
                moment.at_step(step, if by_hand.is_some() { "done, says an operator" } else { "done" })
            }
            SagaEvent::StepSkipped { step, reason } => {
                moment.reason = Some(reason.clone());
                moment.at_step(step, "skipped")
            }
            SagaEvent::EventReceived { step, output, .. } => {
                moment.output = Some(output.clone()).filter(|output| !output.is_null());
                moment.at_step(step, "event received")
            }
            SagaEvent::EventRefused { step, reason, .. } => {
                moment.error = Some(reason.clone());
                moment.at_step(step, "event received: failed")
            }
            SagaEvent::UndoBegan { step, reason, .. } => {
                (moment.step, moment.reason) = (step.clone(), Some(reason.clone()));
                "undo begins"
            }
            SagaEvent::UndoStarted { step } => moment.at_step(step, "undo begun"),
            SagaEvent::UndoFailed { step, attempt, kind, error, next_attempt_at } => {
                moment.failed(*attempt, *kind, error, *next_attempt_at);
                moment.at_step(step, "undo failed")
            }
            SagaEvent::StepUndone { step } => moment.at_step(step, "undone"),
            SagaEvent::SagaStuck { step, reason, .. } => {
                (moment.step, moment.reason) = (step.clone(), Some(reason.clone()));
                "stuck"
            }
            SagaEvent::SagaRetried { reason } => moment.because(reason, "retried"),
            SagaEvent::SagaCancelled { reason } => moment.because(reason, "cancelled"),
            SagaEvent::SagaResolved { outcome: Outcome::Completed, reason } => {
                moment.because(reason, "resolved as completed")
            }
            SagaEvent::SagaResolved { outcome: Outcome::Compensated, reason } => {
                moment.because(reason, "resolved as compensated")
            }
            SagaEvent::SagaCompleted => "completed",
            SagaEvent::SagaCompensated { reason } => moment.because(reason, "compensated"),
            // One of a newer framework: its name says what there is to say.
            _ => return moment,
        };
        moment.what = what.into();
        moment
    }

    fn at_step(&mut self, step: &str, what: &'static str) -> &'static str {
        self.step = Some(step.into());
        what
    }

    fn because(&mut self, reason: &str, what: &'static str) -> &'static str {
        self.reason = Some(reason.into());
        what
    }

    fn failed(&mut self, attempt: u32, kind: FailureKind, error: &str, next: Option<DateTime<Utc>>) {
        (self.attempt, self.kind, self.error, self.next_attempt_at) =
            (Some(attempt), Some(kind), Some(error.into()), next);
    }
}

/// The moments of a history, each with the key that was used then.
pub(crate) fn moments(history: &[Recorded<SagaEvent>], keys: &[StepKeys]) -> Vec<Moment> {
    let mut dead: HashMap<&str, usize> = HashMap::new();
    let key_of = |step: &str, undo: bool, dead: usize| {
        let keys = keys.iter().find(|keys| keys.step == step)?;
        Some(if undo { keys.undo } else { keys.dead.get(dead).copied().unwrap_or(keys.key) })
    };
    let mut moments = vec![];
    for recorded in history {
        let mut moment = Moment::of(recorded);
        let undo = match &recorded.event {
            SagaEvent::StepStarted { .. } | SagaEvent::StepFailed { .. } | SagaEvent::StepCompleted { .. } => {
                Some(false)
            }
            SagaEvent::UndoStarted { .. } | SagaEvent::UndoFailed { .. } | SagaEvent::StepUndone { .. } => Some(true),
            _ => None,
        };
        if let (Some(undo), Some(step)) = (undo, &moment.step) {
            moment.key = key_of(step, undo, dead.get(step.as_str()).copied().unwrap_or_default());
        }
        if let SagaEvent::StepFailed { step, key_is_dead: true, .. } = &recorded.event {
            *dead.entry(step).or_default() += 1;
        }
        moments.push(moment);
    }
    moments
}

/// As much of `text` as fits into a table.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 120;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A row a moment.
pub(crate) fn timeline(history: &[Recorded<SagaEvent>]) -> Table {
    let mut table = table(["time", "what", "step", "attempt", "came to", "error", "until", "actor", "reason"]);
    for moment in history.iter().map(Moment::of) {
        let until = match (moment.next_attempt_at, moment.deadline_at) {
            (Some(at), _) => format!("again {}", at.format("%H:%M:%S")),
            (None, Some(at)) if at - moment.at > TimeDelta::days(1) => at.format("%Y-%m-%d").to_string(),
            (None, Some(at)) => at.format("%H:%M:%S").to_string(),
            (None, None) => String::new(),
        };
        let kind = moment.kind.map(|kind| match kind {
            FailureKind::Business => "business: ",
            FailureKind::Transient => "transient: ",
            FailureKind::Unknown => "unknown: ",
        });
        table.add_row([
            moment.at.format("%Y-%m-%d %H:%M:%S%.3f").to_string(),
            moment.what,
            moment.step.unwrap_or_default(),
            moment.attempt.map(|attempt| attempt.to_string()).unwrap_or_default(),
            moment.output.map(|output| shortened(&output.to_string())).unwrap_or_default(),
            format!("{}{}", kind.unwrap_or_default(), moment.error.unwrap_or_default()),
            until,
            moment.actor.unwrap_or_default(),
            moment.reason.unwrap_or_default(),
        ]);
    }
    for words in [1, 2, 4, 5, 6, 7, 8] {
        if let Some(column) = table.column_mut(words) {
            column.set_cell_alignment(CellAlignment::Left);
        }
    }
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table
}
