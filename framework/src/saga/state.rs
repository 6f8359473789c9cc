//! Where an instance stands, from its events.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::event::{FailureKind, Outcome, SagaEvent};
use crate::Position;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    /// It has not started: an event came before the one that starts it.
    Early,
    Forward,
    Undoing,
    Stuck {
        /// Whether it was undoing.
        undoing: bool,
        step: Option<String>,
        reason: String,
    },
    Completed,
    Compensated,
    Resolved(Outcome),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Not begun.
    Ahead,
    /// An attempt may be under way; or it waits for its event.
    Running,
    /// It is tried again at `next_at`.
    Waiting,
    /// It has not happened, and is given up.
    Failed,
    Completed,
    Skipped,
    Undoing,
    UndoWaiting,
    Undone,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StepState {
    pub(crate) name: String,
    pub(crate) progress: Progress,
    /// Which of the instance's steps began at this number, and which completed.
    pub(crate) begun: u32,
    pub(crate) completed: u32,
    pub(crate) started_at: DateTime<Utc>,
    pub(crate) deadline_at: DateTime<Utc>,
    /// How much time it was given.
    time: TimeDelta,
    pub(crate) timed_out: bool,
    /// When its key, or that of its undo, was first tried at the earliest.
    pub(crate) key_since: DateTime<Utc>,
    /// Whether an attempt may have been under way when the process that ran it was lost, of which nothing is recorded yet.
    pub(crate) interrupted: bool,
    /// Whether somebody has said that it counts no more where the saga stands, although it is done: it is not in the build.
    pub(crate) left_out: bool,
    /// Failed attempts; of the undo, once that began.
    pub(crate) attempts: u32,
    /// Whether it may have happened, and how many attempts ago that was first so.
    pub(crate) unknown: u32,
    /// Whether whoever was asked last has not seen it, and may yet.
    pub(crate) not_seen: bool,
    /// How many keys are dead under which it was tried.
    pub(crate) dead_keys: u32,
    /// Whether an operator had it tried again, and it has not failed since.
    pub(crate) retried: bool,
    pub(crate) next_at: Option<DateTime<Utc>>,
    pub(crate) last_error: Option<String>,
    pub(crate) output: Option<Value>,
    /// What came for it before it began.
    pub(crate) kept: Option<Taken>,
}

/// What a step that waits takes from an event: what it comes to, or why it has failed.
pub(crate) type Taken = Result<Value, String>;

impl StepState {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            progress: Progress::Ahead,
            begun: 0,
            completed: 0,
            started_at: DateTime::UNIX_EPOCH,
            deadline_at: DateTime::UNIX_EPOCH,
            time: TimeDelta::zero(),
            timed_out: false,
            key_since: DateTime::UNIX_EPOCH,
            interrupted: false,
            left_out: false,
            attempts: 0,
            unknown: 0,
            not_seen: false,
            dead_keys: 0,
            retried: false,
            next_at: None,
            last_error: None,
            output: None,
            kept: None,
        }
    }

    /// Whether an attempt may have begun of which nothing is recorded yet.
    pub(crate) fn may_be_under_way(&self, now: DateTime<Utc>) -> bool {
        self.is_open() && self.is_under_way(now)
    }

    /// The same, also of its undo.
    pub(super) fn is_under_way(&self, now: DateTime<Utc>) -> bool {
        match self.progress {
            Progress::Running | Progress::Undoing => true,
            Progress::Waiting | Progress::UndoWaiting => self.next_at.is_some_and(|at| at <= now),
            _ => false,
        }
    }

    /// Whether it may yet succeed by itself.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.progress, Progress::Running | Progress::Waiting)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    /// The event that it began with: all its keys come from that one.
    pub(crate) started: Uuid,
    pub(crate) phase: Phase,
    pub(crate) definition: u32,
    pub(crate) input: Value,
    pub(crate) steps: Vec<StepState>,
    /// The steps that it had before it when it began.
    pub(crate) planned: Vec<String>,
    /// Why it undoes.
    pub(crate) reason: String,
    /// Why it was called off before it began.
    pub(crate) cancelled: Option<String>,
    /// What somebody has to see to, whatever becomes of the steps meanwhile.
    unsettled: Option<String>,
    /// Whether it has completed, whatever has come since.
    pub(crate) done: bool,
    /// The events that it was given.
    received: Vec<Position>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            started: Uuid::nil(),
            phase: Phase::Early,
            definition: 0,
            input: Value::Null,
            steps: vec![],
            planned: vec![],
            reason: String::new(),
            cancelled: None,
            unsettled: None,
            done: false,
            received: vec![],
        }
    }
}

impl State {
    pub(crate) fn step(&self, name: &str) -> Option<&StepState> {
        self.steps.iter().find(|step| step.name == name)
    }

    /// What a step came to, whatever became of it later.
    pub(crate) fn output(&self, name: &str) -> Option<&Value> {
        self.step(name)?.output.as_ref()
    }

    /// What `step` is known by outside: for all its attempts the same, until that one is dead.
    pub(crate) fn key(&self, step: &str) -> Uuid {
        self.nth_key(step, self.step(step).map_or(0, |step| step.dead_keys))
    }

    /// The key of `step` after so many that are dead. Two instances never share one, not even of two stores.
    pub(crate) fn nth_key(&self, step: &str, dead_keys: u32) -> Uuid {
        let again = if dead_keys > 0 { format!(" {dead_keys}") } else { String::new() };
        Uuid::new_v5(&self.started, format!("run {step}{again}").as_bytes())
    }

    /// What the undo of `step` is known by outside.
    pub(crate) fn undo_key(&self, step: &str) -> Uuid {
        Uuid::new_v5(&self.started, format!("undo {step}").as_bytes())
    }

    pub(super) fn has_received(&self, position: Position) -> bool {
        self.received.contains(&position)
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Completed | Phase::Compensated | Phase::Resolved(_))
    }

    /// The steps it is at: those that are begun and not done, or being undone.
    pub(crate) fn current(&self) -> impl Iterator<Item = &StepState> {
        self.steps
            .iter()
            .filter(|step| step.is_open() || matches!(step.progress, Progress::Undoing | Progress::UndoWaiting))
    }

    fn step_mut(&mut self, name: &str) -> &mut StepState {
        let nth = self.steps.iter().position(|step| step.name == name).unwrap_or_else(|| {
            self.steps.push(StepState::new(name));
            self.steps.len() - 1
        });
        &mut self.steps[nth]
    }

    /// Whether what has not begun of `step` is not to begin any more: its time is over, or the saga undoes.
    pub(crate) fn is_over(&self, step: &StepState, now: DateTime<Utc>) -> bool {
        self.phase == Phase::Undoing || (self.phase == Phase::Forward && step.deadline_at <= now)
    }

    /// Leaves the state of being stuck at `step`, or at any.
    fn unstick(&mut self, at: Option<&str>) {
        if let Phase::Stuck { undoing, step, .. } = &self.phase
            && (at.is_none() || step.as_deref() == at)
        {
            self.go_on(*undoing);
        }
    }

    /// Goes on, unless there is something that somebody has to see to.
    fn go_on(&mut self, undoing: bool) {
        self.phase = match (&self.unsettled, undoing) {
            (Some(reason), _) => Phase::Stuck { undoing, step: None, reason: reason.clone() },
            (None, true) => Phase::Undoing,
            (None, false) if self.done => Phase::Completed,
            (None, false) => Phase::Forward,
        };
    }

    /// Lets an event happen, which was recorded at `at`.
    pub(crate) fn apply(&mut self, event: &SagaEvent, at: DateTime<Utc>) {
        if let SagaEvent::StepStarted { step, .. }
        | SagaEvent::StepFailed { step, .. }
        | SagaEvent::StepCompleted { step, .. }
        | SagaEvent::StepSkipped { step, .. }
        | SagaEvent::UndoStarted { step }
        | SagaEvent::UndoFailed { step, .. }
        | SagaEvent::StepUndone { step } = event
        {
            self.step_mut(step).interrupted = false;
        }
        match event {
            SagaEvent::SagaStarted { definition, input, steps } => {
                (self.definition, self.input, self.phase) = (*definition, input.clone(), Phase::Forward);
                self.planned.clone_from(steps);
            }
            SagaEvent::StepStarted { step, deadline_at } => {
                let begun = self.steps.iter().map(|step| step.begun).max().unwrap_or(0) + 1;
                let step = self.step_mut(step);
                (step.progress, step.begun, step.attempts, step.next_at) = (Progress::Running, begun, 0, None);
                (step.started_at, step.deadline_at, step.timed_out) = (at, *deadline_at, false);
                (step.time, step.key_since) = ((*deadline_at - at).max(TimeDelta::zero()), at);
            }
            SagaEvent::StepFailed { step, attempt, error, unknown, not_seen, key_is_dead, next_attempt_at, .. } => {
                let state = self.step_mut(step);
                (state.attempts, state.retried, state.not_seen) = (*attempt, false, *not_seen);
                if *key_is_dead {
                    (state.dead_keys, state.key_since) = (state.dead_keys + 1, at);
                }
                state.unknown = if *unknown { state.unknown + 1 } else { 0 };
                state.next_at = *next_attempt_at;
                state.last_error = Some(error.clone());
                let is_open = *unknown || next_attempt_at.is_some();
                state.progress = if is_open { Progress::Waiting } else { Progress::Failed };
                if *unknown && self.phase == Phase::Compensated {
                    self.phase = Phase::Undoing;
                }
                // What it was stuck at is known now.
                if !is_open || *key_is_dead {
                    self.unstick(Some(step));
                }
            }
            SagaEvent::StepTimedOut { step, under_way } => {
                let step = self.step_mut(step);
                step.timed_out = true;
                if !under_way {
                    step.progress = Progress::Failed;
                }
            }
            SagaEvent::StepCompleted { step, output, .. } => {
                let completed = self.steps.iter().map(|step| step.completed).max().unwrap_or(0) + 1;
                let state = self.step_mut(step);
                (state.progress, state.completed, state.unknown) = (Progress::Completed, completed, 0);
                (state.output, state.next_at, state.attempts) = (Some(output.clone()), None, 0);
                self.unstick(Some(step));
                if self.phase == Phase::Compensated {
                    self.phase = Phase::Undoing;
                }
            }
            SagaEvent::StepSkipped { step, .. } => {
                let is_forward = matches!(self.phase, Phase::Forward | Phase::Stuck { undoing: false, .. });
                let begun = self.steps.iter().map(|step| step.begun).max().unwrap_or(0) + 1;
                let state = self.step_mut(step);
                if state.progress == Progress::Ahead {
                    state.begun = begun;
                }
                state.progress = match state.progress {
                    // It is done, and remains to be undone.
                    Progress::Completed if is_forward => {
                        state.left_out = true;
                        Progress::Completed
                    }
                    Progress::Completed | Progress::Undoing | Progress::UndoWaiting => Progress::Undone,
                    _ => Progress::Skipped,
                };
                (state.next_at, state.unknown) = (None, 0);
                self.unstick(Some(step));
            }
            SagaEvent::EventReceived { step, position, output } => {
                self.step_mut(step).kept = Some(Ok(output.clone()));
                self.received.push(*position);
            }
            SagaEvent::EventRefused { step, position, reason } => {
                // What has come is not taken back by what says that it will not.
                let kept = &mut self.step_mut(step).kept;
                *kept = kept.take().filter(Result::is_ok).or_else(|| Some(Err(reason.clone())));
                self.received.push(*position);
            }
            SagaEvent::UndoBegan { reason, abandoned, .. } => {
                for name in abandoned {
                    self.step_mut(name).progress = Progress::Failed;
                }
                self.reason = reason.clone();
                self.go_on(true);
            }
            SagaEvent::UndoStarted { step } => {
                let step = self.step_mut(step);
                (step.progress, step.attempts, step.next_at) = (Progress::Undoing, 0, None);
                (step.started_at, step.key_since, step.unknown) = (at, at, 0);
            }
            SagaEvent::UndoFailed { step, attempt, kind, error, next_attempt_at } => {
                let step = self.step_mut(step);
                step.retried = false;
                if *kind == FailureKind::Unknown || step.unknown > 0 {
                    step.unknown += 1;
                }
                (step.progress, step.attempts, step.next_at) = (Progress::UndoWaiting, *attempt, *next_attempt_at);
                step.last_error = Some(error.clone());
            }
            SagaEvent::StepUndone { step } => {
                let state = self.step_mut(step);
                (state.progress, state.next_at, state.unknown) = (Progress::Undone, None, 0);
                self.unstick(Some(step));
            }
            SagaEvent::SagaStuck { step, reason, interrupted } => {
                let undoing = match &self.phase {
                    Phase::Stuck { undoing, .. } => *undoing,
                    phase => matches!(phase, Phase::Undoing | Phase::Compensated),
                };
                // What was told before stays told: of a step until that is settled, otherwise until somebody has seen to it.
                let known = match &self.phase {
                    Phase::Stuck { reason, .. } if step.is_none() => Some(reason),
                    _ => self.unsettled.as_ref(),
                };
                let reason = match known {
                    Some(known) if known.contains(reason) => known.clone(),
                    Some(known) => format!("{known}; and {reason}"),
                    None => reason.clone(),
                };
                if step.is_none() {
                    self.unsettled = Some(reason.clone());
                }
                self.phase = Phase::Stuck { undoing, step: step.clone(), reason };
                for step in self.steps.iter_mut().filter(|_| *interrupted) {
                    step.interrupted |= step.is_under_way(at);
                }
            }
            SagaEvent::SagaRetried { .. } => {
                let stuck_at = match &self.phase {
                    Phase::Stuck { step, .. } => step.clone(),
                    _ => None,
                };
                for step in &mut self.steps {
                    if matches!(step.progress, Progress::Waiting | Progress::UndoWaiting) {
                        (step.attempts, step.next_at, step.not_seen) = (0, Some(at), false);
                        step.unknown = step.unknown.min(1);
                    }
                    // Who has it undone again has looked: its key counts as new.
                    if step.progress == Progress::UndoWaiting && stuck_at.as_deref() == Some(&*step.name) {
                        (step.key_since, step.retried) = (at, true);
                    }
                    // It has its time anew.
                    if step.is_open() {
                        let time = if step.time.is_zero() { TimeDelta::hours(1) } else { step.time };
                        step.deadline_at = step.deadline_at.max(at + time);
                        step.timed_out &= step.deadline_at <= at;
                    }
                }
                self.unsettled = None;
                self.unstick(None);
            }
            // What follows from it stands behind it, or behind what begins it.
            SagaEvent::SagaCancelled { reason } => {
                if self.phase == Phase::Early {
                    self.cancelled = Some(reason.clone());
                }
            }
            SagaEvent::SagaResolved { outcome, reason } => {
                self.phase = Phase::Resolved(*outcome);
                self.reason = format!("resolved by an operator: {reason}");
            }
            SagaEvent::SagaCompleted => (self.phase, self.done) = (Phase::Completed, true),
            SagaEvent::SagaCompensated { .. } => self.phase = Phase::Compensated,
        }
    }
}

/// `at`, later by `duration`; the end of time if that is further.
pub(crate) fn later(at: DateTime<Utc>, duration: Duration) -> DateTime<Utc> {
    const FAR: TimeDelta = TimeDelta::days(36_500);
    at + TimeDelta::from_std(duration).unwrap_or(FAR).min(FAR)
}
