//! The story of an instance of a saga, as its own stream tells it.

use annals::{FailureKind, Outcome, Recorded, SagaEvent};
use chrono::{DateTime, TimeDelta, Utc};
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;

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
            next_attempt_at: None,
            deadline_at: None,
            actor: recorded.metadata.actor.clone(),
            reason: None,
        };
        let what = match &recorded.event {
            SagaEvent::SagaStarted { .. } => "started",
            SagaEvent::StepStarted { step, deadline_at } => {
                moment.deadline_at = Some(*deadline_at);
                moment.at_step(step, "begun")
            }
            SagaEvent::StepFailed { step, attempt, kind, error, unknown, next_attempt_at, key_is_dead } => {
                moment.failed(*attempt, *kind, error, *next_attempt_at);
                let what = match (unknown, key_is_dead) {
                    (true, _) => "failed, outcome not known",
                    (false, true) => "did not happen",
                    (false, false) => "failed",
                };
                moment.at_step(step, what)
            }
            SagaEvent::StepTimedOut { step, .. } => moment.at_step(step, "timed out"),
            SagaEvent::StepCompleted { step, by_hand, .. } => {
                moment.reason = by_hand.clone();
                moment.at_step(step, if by_hand.is_some() { "done, says an operator" } else { "done" })
            }
            SagaEvent::StepSkipped { step, reason } => {
                moment.reason = Some(reason.clone());
                moment.at_step(step, "skipped")
            }
            SagaEvent::EventReceived { step, refusal, .. } => {
                moment.error = refusal.clone();
                moment.at_step(step, "event received")
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
            SagaEvent::SagaStuck { step, reason } => {
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

/// A row a moment.
pub(crate) fn timeline(history: &[Recorded<SagaEvent>]) -> Table {
    let mut table = table(["time", "what", "step", "attempt", "error", "until", "actor", "reason"]);
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
            format!("{}{}", kind.unwrap_or_default(), moment.error.unwrap_or_default()),
            until,
            moment.actor.unwrap_or_default(),
            moment.reason.unwrap_or_default(),
        ]);
    }
    for words in [1, 2, 4, 5, 6, 7] {
        if let Some(column) = table.column_mut(words) {
            column.set_cell_alignment(CellAlignment::Left);
        }
    }
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table
}
