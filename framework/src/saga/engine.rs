//! The state machine of a saga: (state, input, now) → (events, effects). It does nothing itself, and knows no clock.
//!
//! The runtime, the testing kit and the model checker all drive this one. What it decides is appended to the instance's stream;
//! what there is to do follows from the state ([`effects`]), so whoever takes an instance over finds it there.
//!
//! Undoing waits until nothing is open any more: a step under way either succeeds, and is undone, or is known not to have
//! happened. Nothing is undone blindly.

mod advance;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{
    event::{FailureKind, Outcome, SagaEvent},
    plan::{InVain, Kind, Plan, Planned},
    state::{Phase, Progress, State, StepState, Taken, later},
};
use crate::{Position, Target};

/// A failure as the engine is told of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) error: String,
    /// Not to be tried again before.
    pub(crate) retry_after: Option<Duration>,
    /// Not to be tried again by this build.
    pub(crate) is_final: bool,
}

impl Failure {
    fn transient(error: String) -> Self {
        Self { kind: FailureKind::Transient, error, retry_after: None, is_final: false }
    }
}

/// What an instance is told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Input {
    Start {
        definition: u32,
        input: Value,
    },
    /// `key`: which of the step's keys this is about, counted from 0. What is said of one that is dead says nothing of the next.
    Succeeded {
        step: String,
        key: u32,
        output: Value,
    },
    Failed {
        step: String,
        key: u32,
        failure: Failure,
    },
    /// Its time is over, or the saga undoes, and nobody tries it. Only who runs the instance knows that, and only of the state that he
    /// decides on.
    NeverTried {
        step: String,
    },
    /// Whoever was asked says that it did not happen, and never will under this key: it is dead.
    NotDone {
        step: String,
        key: u32,
    },
    /// Whoever was asked has not seen it, and may yet.
    NotSeen {
        step: String,
        key: u32,
    },
    /// Somebody who looked says that it did not happen, and never will. `is_run`: an attempt may be under way.
    Denied {
        step: String,
        reason: String,
        is_run: bool,
    },
    /// Whoever was asked could not say.
    NotAnswered {
        step: String,
        key: u32,
        failure: Failure,
    },
    Undone {
        step: String,
    },
    UndoFailed {
        step: String,
        failure: Failure,
    },
    /// An event, with what each step that waits for such takes from it.
    Event {
        position: Position,
        outputs: Vec<(String, Taken)>,
    },
    /// Time passes.
    Tick,
    /// The process that ran it is gone. Attempts may have been under way.
    Interrupted,
    /// Something about it cannot be read or stored. `interrupted`: attempts may have been under way, of which nothing can be said.
    Broken {
        step: Option<String>,
        reason: String,
        interrupted: bool,
    },
    Retry {
        reason: String,
    },
    /// Somebody has seen to it. `is_run`: an attempt may be under way.
    Skip {
        step: String,
        reason: String,
        is_run: bool,
    },
    /// Somebody knows that it happened. `is_run`: an attempt may be under way.
    Completed {
        step: String,
        output: Value,
        reason: String,
        is_run: bool,
    },
    Cancel {
        reason: String,
    },
    Resolve {
        outcome: Outcome,
        reason: String,
    },
}

/// What there is to do for a step, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum What {
    Run,
    /// It may have happened: whoever knows is asked.
    Ask,
    Undo,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) step: &'static str,
    pub(crate) what: What,
    /// Which attempt this is, from 1.
    pub(crate) attempt: u32,
    /// Under which of the step's keys, counted from 0.
    pub(crate) key: u32,
}

/// What whoever was asked said of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Never,
    NotSeen,
    Nothing,
}

/// Decides what becomes of an instance. An error is an operator's input that does not fit: nothing happens then.
pub(crate) fn decide(
    plan: &Plan,
    state: &State,
    input: Input,
    now: DateTime<Utc>,
) -> Result<(Vec<SagaEvent>, State), String> {
    let mut turn = Turn { plan, state: state.clone(), now, events: vec![], interrupted: false };
    turn.take(input)?;
    turn.advance();
    Ok((turn.events, turn.state))
}

/// What is to be done now.
pub(crate) fn effects(plan: &Plan, state: &State, now: DateTime<Utc>) -> Vec<Effect> {
    let undoing = match &state.phase {
        Phase::Forward => false,
        Phase::Undoing => true,
        _ => return vec![],
    };
    let is_due = |step: &StepState| match step.progress {
        Progress::Running | Progress::Undoing => true,
        // What is called off before its next attempt is given up at once, by who knows whether that has begun.
        Progress::Waiting if undoing && step.unknown == 0 => true,
        // One without a next attempt is not tried again by itself.
        _ => step.next_at.is_some_and(|at| at <= now),
    };
    let lives = |step: &StepState| plan.step(&step.name).and_then(|it| lives_until(it, step)).is_none_or(|at| now < at);
    let effect = |step: &StepState| {
        let planned = plan.step(&step.name)?;
        let what = match (step.progress, &planned.kind) {
            (Progress::Undoing | Progress::UndoWaiting, _) if undoing => What::Undo,
            (Progress::Undoing | Progress::UndoWaiting, _) | (_, Kind::Wait { .. }) => return None,
            // What has not been seen is repeated under its key, but not while it is undone.
            (_, Kind::Call { asks: true }) if step.unknown > 0 && (undoing || !step.not_seen) => What::Ask,
            _ => What::Run,
        };
        Some(Effect { step: planned.name, what, attempt: step.attempts + 1, key: step.dead_keys })
    };
    let known = |step: &&StepState| !is_in_doubt(plan, step);
    state.current().filter(known).filter(|step| is_due(step) && lives(step)).filter_map(effect).collect()
}

/// When there will be something to do, or is over, that nothing but time brings. What is due by `now` is an effect.
pub(crate) fn wakes_at(plan: &Plan, state: &State, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    if !matches!(state.phase, Phase::Forward | Phase::Undoing) {
        return None;
    }
    let wakes = |step: &StepState| {
        // That it is at a step which is not there, or may have been under way, is to be told at once.
        if plan.step(&step.name).is_none() || is_in_doubt(plan, step) {
            return Some(now);
        }
        let lives = plan.step(&step.name).and_then(|planned| lives_until(planned, step));
        let deadline = (state.phase == Phase::Forward && step.is_open() && !step.timed_out).then_some(step.deadline_at);
        let waits = plan.step(&step.name).is_some_and(|planned| matches!(planned.kind, Kind::Wait { .. }));
        if waits && step.is_open() {
            deadline
        } else {
            step.next_at.filter(|at| *at > now).into_iter().chain(deadline).chain(lives).min()
        }
    };
    state.current().filter_map(wakes).min()
}

/// Until when what may have happened may be repeated under its key; none if for ever, or if it can be asked.
fn lives_until(planned: &Planned, step: &StepState) -> Option<DateTime<Utc>> {
    let life = planned.target?.key_life?;
    let repeats = match step.progress {
        Progress::UndoWaiting => true,
        Progress::Waiting => matches!(planned.kind, Kind::Call { asks: false }) || step.not_seen,
        _ => false,
    };
    // Who had it tried again has looked.
    (repeats && step.unknown > 0 && !step.retried).then(|| later(step.key_since, life))
}

/// Whether an attempt may have been under way when its process was lost, of which nothing is recorded yet.
pub(crate) fn is_in_doubt(plan: &Plan, step: &StepState) -> bool {
    step.interrupted && leaves_doubt(plan, step)
}

/// Whether nobody knows what became of an attempt that nobody has told the end of. A command that commits with its step did, or did
/// nothing.
fn leaves_doubt(plan: &Plan, step: &StepState) -> bool {
    let undoing = matches!(step.progress, Progress::Undoing | Progress::UndoWaiting);
    plan.step(&step.name).is_some_and(|planned| match undoing {
        true => !planned.undo_commits,
        false => !matches!(planned.kind, Kind::Command | Kind::Wait { .. }),
    })
}

/// Why an operator's word is not taken now.
const UNDER_WAY: &str = "an attempt may be under way. Say so once nobody runs it";

/// Why somebody is to look where nothing came.
const MISSED: &str = "what it waits for did not come in time. It goes on when it comes; or resolve it, once it is known what became of it";

struct Turn<'p> {
    plan: &'p Plan,
    state: State,
    now: DateTime<Utc>,
    events: Vec<SagaEvent>,
    /// Whether attempts may have been under way of which nothing could be recorded.
    interrupted: bool,
}

impl<'p> Turn<'p> {
    fn emit(&mut self, event: SagaEvent) {
        self.state.apply(&event, self.now);
        self.events.push(event);
    }

    fn stuck(&mut self, step: Option<&str>, reason: impl Into<String>) {
        let (step, reason, interrupted) = (step.map(Into::into), reason.into(), self.interrupted);
        self.emit(SagaEvent::SagaStuck { step, reason, interrupted });
    }

    fn take(&mut self, input: Input) -> Result<(), String> {
        match input {
            Input::Start { definition, input } => {
                if self.state.phase == Phase::Early {
                    let steps = self.plan.steps().map(|step| step.name.to_owned()).collect();
                    self.emit(SagaEvent::SagaStarted { definition, input, steps });
                    if let Some(reason) = self.state.cancelled.clone() {
                        self.begin_undo(None, reason);
                    }
                }
            }
            Input::Succeeded { step, key, output } => self.succeeded(step, key, output),
            Input::Failed { step, key, failure } if self.is_of(&step, key) => self.failed(&step, failure, None, true),
            Input::NotDone { step, key } if self.is_of(&step, key) => {
                let error = "whoever was asked says that it did not happen, and never will".into();
                self.failed(&step, Failure::transient(error), Some(Said::Never), true);
            }
            Input::NotSeen { step, key } if self.is_of(&step, key) => {
                let error = "whoever was asked has not seen it".into();
                self.failed(&step, Failure::transient(error), Some(Said::NotSeen), true);
            }
            Input::NotAnswered { step, key, failure } if self.is_of(&step, key) => {
                self.failed(&step, failure, Some(Said::Nothing), true);
            }
            Input::Failed { .. } | Input::NotDone { .. } | Input::NotSeen { .. } | Input::NotAnswered { .. } => {}
            Input::Denied { step, reason, is_run } => self.denied(step, &reason, is_run)?,
            Input::NeverTried { step } => {
                let is_over = |step: &&StepState| self.state.is_over(step, self.now) && !is_in_doubt(self.plan, step);
                let Some(over) = self.state.step(&step).filter(is_over) else { return Ok(()) };
                let error = match &over.last_error {
                    Some(error) => format!("it was given up before its next attempt: {error}"),
                    None => "it was given up before it was tried".into(),
                };
                self.failed(&step, Failure::transient(error), None, true);
            }
            Input::Undone { step } => {
                let progress = self.state.step(&step).map(|step| step.progress);
                if matches!(progress, Some(Progress::Undoing | Progress::UndoWaiting)) {
                    self.emit(SagaEvent::StepUndone { step });
                }
            }
            Input::UndoFailed { step, failure } => self.undo_failed(&step, failure, true),
            Input::Event { position, outputs } => {
                if !self.state.has_received(position) {
                    for (step, taken) in outputs {
                        // What comes after the end is undone, too, if that can be.
                        let reopens = self.state.phase == Phase::Compensated
                            && taken.is_ok()
                            && self.state.step(&step).is_none_or(|it| self.came_late(it))
                            && self.plan.step(&step).is_some_and(|planned| planned.has_undo);
                        if self.state.has_ended() && !reopens {
                            continue;
                        }
                        let is_open = self.state.step(&step).is_some_and(StepState::is_open);
                        let late =
                            is_open && matches!(&self.state.phase, Phase::Stuck { step: Some(at), .. } if *at == step);
                        self.emit(match taken.clone() {
                            Ok(output) => SagaEvent::EventReceived { step: step.clone(), position, output },
                            Err(reason) => SagaEvent::EventRefused { step: step.clone(), position, reason },
                        });
                        if late || reopens {
                            self.received(step, taken);
                        }
                    }
                }
            }
            Input::Tick => self.tick(),
            Input::Interrupted => self.interrupted(),
            Input::Broken { step, reason, interrupted } => {
                // What could not be read may have opened again what has ended.
                let may_be_open = step.is_none() && !matches!(self.state.phase, Phase::Resolved(_));
                if may_be_open || !self.state.has_ended() {
                    self.interrupted |= interrupted;
                    self.stuck(step.as_deref(), reason);
                }
            }
            Input::Retry { reason } => {
                let is_stuck = matches!(self.state.phase, Phase::Stuck { .. });
                let waits = self.state.current().any(|step| step.next_at.is_some());
                // One of which nothing is under way goes on by itself, unless an older build has kept it from that.
                let is_held = !self.state.has_ended() && self.state.current().next().is_none();
                if self.state.phase == Phase::Early || (!is_stuck && !waits && !is_held) {
                    return Err(format!("{}: there is nothing to try again", self.place()));
                }
                if let Some(step) = self.state.current().find(|step| self.is_not_to_be_repeated(step)) {
                    return Err(format!(
                        "{}: it is not known whether {} happened, and it cannot be repeated under its key. {}",
                        self.place(),
                        step.name,
                        self.look(&step.name)
                    ));
                }
                self.emit(SagaEvent::SagaRetried { reason });
            }
            Input::Skip { step, reason, is_run } => {
                let stuck_at = match &self.state.phase {
                    Phase::Stuck { step, .. } => step.as_deref(),
                    _ => None,
                };
                if self.state.has_ended()
                    || (stuck_at != Some(&*step) && !self.state.current().any(|current| current.name == step))
                {
                    return Err(format!("{}, not at step {step:?}", self.place()));
                }
                let calls = self.plan.step(&step).is_some_and(|it| !matches!(it.kind, Kind::Wait { .. }));
                let is_first = |step: &StepState| step.is_open() && step.unknown == 0;
                if is_run && calls && self.state.step(&step).is_some_and(is_first) {
                    return Err(format!("{}: {UNDER_WAY}", self.place()));
                }
                self.emit(SagaEvent::StepSkipped { step, reason });
            }
            Input::Cancel { reason } => match self.state.phase {
                Phase::Forward | Phase::Stuck { undoing: false, .. } if !self.state.done => {
                    self.emit(SagaEvent::SagaCancelled { reason: reason.clone() });
                    self.begin_undo(None, reason);
                }
                // What begins it comes later: then it is over at once.
                Phase::Early if self.state.cancelled.is_none() => self.emit(SagaEvent::SagaCancelled { reason }),
                _ => return Err(format!("{}: it cannot be cancelled", self.place())),
            },
            Input::Completed { step, output, reason, is_run } => {
                let at = self.state.step(&step).filter(|step| step.is_open());
                let Some(at) = at.filter(|_| !self.state.has_ended()) else {
                    return Err(format!("{}: step {step:?} is not open", self.place()));
                };
                let waits = self.plan.step(&step).is_some_and(|it| matches!(it.kind, Kind::Wait { .. }));
                if is_run && at.unknown == 0 && !waits {
                    return Err(format!("{}: {UNDER_WAY}", self.place()));
                }
                self.emit(SagaEvent::StepCompleted { step, output, by_hand: Some(reason) });
            }
            Input::Resolve { outcome, reason } => {
                if self.state.has_ended() {
                    return Err(format!("{}: there is nothing to resolve", self.place()));
                }
                self.emit(SagaEvent::SagaResolved { outcome, reason });
            }
        }
        Ok(())
    }

    /// Whether `key` is the one that the step is tried under.
    fn is_of(&self, step: &str, key: u32) -> bool {
        self.state.step(step).is_some_and(|step| step.dead_keys == key)
    }

    fn succeeded(&mut self, step: String, key: u32, output: Value) {
        use Progress::{Completed, Failed, Running, Skipped, UndoWaiting, Undoing, Undone, Waiting};
        let Some(at) = self.state.step(&step) else { return };
        let progress = at.progress;
        if key < at.dead_keys && matches!(progress, Running | Waiting | Completed | Undoing | UndoWaiting | Undone) {
            // It may have happened under both, and whoever was asked was wrong.
            if !matches!(self.state.phase, Phase::Resolved(_)) {
                let output: String = output.to_string().chars().take(200).collect();
                let reason = format!(
                    "{step} has happened under the key {}, of which was said that it never would: {output}. Undo that by hand, unless \
                     it has not happened under the key {}, and retry",
                    self.state.nth_key(&step, key),
                    self.state.key(&step)
                );
                // At no step: what becomes of the attempt under the other key does not settle it.
                self.stuck(None, reason);
            }
        } else if matches!(progress, Running | Waiting | Failed | Skipped) {
            self.emit(SagaEvent::StepCompleted { step, output, by_hand: None });
        }
    }

    /// An operator says that a step did not happen, and never will. It has its time anew, and another key.
    fn denied(&mut self, step: String, reason: &str, is_run: bool) -> Result<(), String> {
        let is_open = self.state.step(&step).is_some_and(|step| step.is_open() && step.unknown > 0);
        if !is_open || self.state.has_ended() {
            return Err(format!("{}: it is not in doubt whether step {step:?} happened", self.place()));
        }
        // Before it is stuck somebody may begin to try it again, under the key that is to be dead.
        if !matches!(self.state.phase, Phase::Stuck { .. }) {
            let why = "it is found out, or tried again, by itself. Say so if it is stuck";
            return Err(format!("{}: {why}", self.place()));
        }
        if is_run {
            return Err(format!("{}: {UNDER_WAY}", self.place()));
        }
        let Some(planned) = self.plan.step(&step) else {
            return Err(format!("{}: step {step:?} is not in this build; skip it", self.place()));
        };
        let is_forward = self.is_forward();
        self.emit(SagaEvent::StepFailed {
            attempt: self.state.step(&step).map_or(0, |step| step.attempts) + 1,
            step: step.clone(),
            kind: FailureKind::Transient,
            error: format!("an operator says that it did not happen: {reason}"),
            unknown: false,
            not_seen: false,
            key_is_dead: true,
            next_attempt_at: is_forward.then_some(self.now),
        });
        if is_forward {
            self.emit(SagaEvent::StepStarted { step, deadline_at: later(self.now, planned.timeout) });
        }
        Ok(())
    }

    /// Where it stands, for somebody who wanted it elsewhere.
    fn place(&self) -> String {
        let at: Vec<&str> = self.state.current().map(|step| step.name.as_str()).collect();
        match &self.state.phase {
            Phase::Early => "it has not started".into(),
            Phase::Forward => format!("it is at {}", at.join(", ")),
            Phase::Undoing => format!("it is undoing, at {}", at.join(", ")),
            Phase::Stuck { step: Some(step), .. } => format!("it is stuck at {step}"),
            Phase::Stuck { step: None, .. } => "it is stuck".into(),
            Phase::Completed => "it has completed".into(),
            Phase::Compensated => "it has been undone".into(),
            Phase::Resolved(_) => "it has been resolved".into(),
        }
    }

    /// Whether what comes for a step that waits comes too late for it, or came before it began, and is to be undone for that.
    fn came_late(&self, step: &StepState) -> bool {
        let undone = |planned: &Planned| matches!(planned.kind, Kind::Wait { .. }) && planned.has_undo;
        matches!(step.progress, Progress::Ahead | Progress::Failed) && self.plan.step(&step.name).is_some_and(undone)
    }

    /// What came for a step that waits ends it.
    fn received(&mut self, step: String, taken: Taken) {
        match taken {
            Ok(output) => self.emit(SagaEvent::StepCompleted { step, output, by_hand: None }),
            Err(error) => self.emit(SagaEvent::StepFailed {
                step,
                attempt: 1,
                kind: FailureKind::Business,
                error,
                unknown: false,
                not_seen: false,
                key_is_dead: false,
                next_attempt_at: None,
            }),
        }
    }

    /// Whether it may have happened, nobody can be asked, and to repeat it might do it twice.
    fn is_not_to_be_repeated(&self, step: &StepState) -> bool {
        let Some(planned) = self.plan.step(&step.name) else { return false };
        let lapsed = lives_until(planned, step).is_some_and(|at| at <= self.now);
        step.progress == Progress::Waiting
            && step.unknown > 0
            && matches!(planned.kind, Kind::Call { asks: false })
            && (lapsed || planned.retry.attempts <= 1)
    }

    /// What to do about a step of which nothing is known.
    fn look(&self, name: &str) -> String {
        format!(
            "Look for the key {} where it would have happened. If it did, complete the step with what it came to; if it did not, \
             and will not, say that it is not done: then it is tried again under a new key. To give the saga up, cancel it first",
            self.state.key(name)
        )
    }

    /// The same, of its undo.
    fn look_for_undo(&self, name: &str) -> String {
        format!(
            "Look for the key {} where it would have been undone. If it was, skip the step; if it was not, retry",
            self.state.undo_key(name)
        )
    }

    /// An attempt failed; or whoever was asked did not say that it succeeded.
    fn failed(&mut self, name: &str, failure: Failure, asked: Option<Said>, waits: bool) {
        let (Some(planned), Some(step)) = (self.plan.step(name), self.state.step(name)) else { return };
        // It was given up in the moment in which it was begun.
        let reopens = step.progress == Progress::Failed
            && (failure.kind, asked) == (FailureKind::Unknown, None)
            && (!self.state.has_ended() || self.state.phase == Phase::Compensated);
        let is_open = step.is_open() && !self.state.has_ended();
        if !(is_open || reopens) || matches!(planned.kind, Kind::Wait { .. }) {
            return;
        }
        let Failure { mut kind, error, retry_after, is_final } = failure;
        let unknown = match (asked, kind) {
            (Some(said), _) => said != Said::Never,
            (None, FailureKind::Business) => false,
            (None, FailureKind::Transient) => step.unknown > 0,
            (None, FailureKind::Unknown) => true,
        };
        // A question is no attempt. What may have happened has as many tries of its own to find out; that of a policy of one attempt,
        // too, if it is a question.
        // A no of whoever was asked is not the step's.
        if asked == Some(Said::Nothing) && kind == FailureKind::Business {
            kind = FailureKind::Unknown;
        }
        let is_question = matches!(asked, Some(Said::NotSeen | Said::Nothing));
        let attempt = if is_question { step.attempts } else { step.attempts + 1 };
        let asks = matches!(planned.kind, Kind::Call { asks: true });
        let counted = if unknown { step.unknown + u32::from(!asks) } else { attempt };
        let (key_since, deadline_at, timed_out) = (step.key_since, step.deadline_at, step.timed_out);
        let delay = planned.retry.delay(counted, seed(name, attempt, self.now));
        let delay = delay.map(|delay| if waits { delay.max(retry_after.unwrap_or_default()) } else { Duration::ZERO });
        let mut next = delay.map(|delay| later(self.now, delay));
        let mut lapsed = false;
        if unknown {
            next = next.filter(|_| !is_final);
            if let Some(Target { key_life: Some(life), .. }) = planned.target
                && (!asks || asked == Some(Said::NotSeen))
            {
                let ends = later(key_since, life);
                lapsed = next.is_some_and(|next| next >= ends);
                next = next.filter(|_| !lapsed);
            }
        } else {
            let goes_on = kind != FailureKind::Business && self.is_forward() && !timed_out;
            next = next.filter(|next| goes_on && *next < deadline_at);
        }
        let step = name.to_owned();
        let said = error.clone();
        let (key_is_dead, not_seen) = (asked == Some(Said::Never), asked == Some(Said::NotSeen));
        self.emit(SagaEvent::StepFailed {
            step,
            attempt,
            kind,
            error,
            unknown,
            not_seen,
            key_is_dead,
            next_attempt_at: next,
        });
        if unknown && next.is_none() {
            let look = self.look(name);
            let is_retried = !self.state.step(name).is_some_and(|step| self.is_not_to_be_repeated(step));
            let reason = match (is_final, lapsed) {
                (true, _) if is_retried => {
                    format!("{said}. Retry with a build that can, if {name} has not happened before that. {look}")
                }
                (true, _) => format!("{said}. {look}"),
                (_, true) => {
                    format!(
                        "it is not known whether {name} happened, and its key does not live any longer: {said}. {look}"
                    )
                }
                _ => format!(
                    "it is not known whether {name} happened, and there are no attempts left to find out: {said}. {look}"
                ),
            };
            self.stuck(Some(name), reason);
        }
    }

    fn undo_failed(&mut self, name: &str, failure: Failure, waits: bool) {
        let (Some(planned), Some(step)) = (self.plan.step(name), self.state.step(name)) else { return };
        if !matches!(step.progress, Progress::Undoing | Progress::UndoWaiting) || self.state.has_ended() {
            return;
        }
        let Failure { kind, error, retry_after, is_final } = failure;
        let attempt = step.attempts + 1;
        let delay = planned.undo_retry.delay(attempt, seed(name, attempt, self.now));
        let delay = delay.filter(|_| kind != FailureKind::Business && !is_final);
        let delay = delay.map(|delay| if waits { delay.max(retry_after.unwrap_or_default()) } else { Duration::ZERO });
        let next_attempt_at = delay.map(|delay| later(self.now, delay));
        let step = name.to_owned();
        let said = error.clone();
        self.emit(SagaEvent::UndoFailed { step, attempt, kind, error, next_attempt_at });
        if next_attempt_at.is_none() {
            let key = self.state.undo_key(name);
            let reason = format!(
                "{name} could not be undone, after {attempt} attempts under the key {key}: {said}. Retry once what kept it is \
                 mended, or undo it by hand and skip it"
            );
            self.stuck(Some(name), reason);
        }
    }

    /// Time has passed: steps may be over.
    fn tick(&mut self) {
        if !self.is_forward() {
            return;
        }
        let over = |step: &&StepState| step.is_open() && !step.timed_out && step.deadline_at <= self.now;
        let over: Vec<(String, bool)> = self
            .state
            .steps
            .iter()
            .filter(over)
            .map(|step| (step.name.clone(), step.may_be_under_way(self.now) || step.unknown > 0))
            .collect();
        for (step, open) in over {
            // Of one that this build does not have, nobody says what its time means.
            let Some(planned) = self.plan.step(&step) else { continue };
            let Kind::Wait { in_vain, .. } = &planned.kind else {
                self.emit(SagaEvent::StepTimedOut { step, under_way: open });
                continue;
            };
            match in_vain {
                InVain::Fails => self.emit(SagaEvent::StepTimedOut { step, under_way: false }),
                InVain::Stuck => {
                    self.emit(SagaEvent::StepTimedOut { step: step.clone(), under_way: true });
                    self.stuck(Some(&step), MISSED);
                }
                InVain::GoesOn(with) => match with(&self.state) {
                    Ok(output) => {
                        self.emit(SagaEvent::StepTimedOut { step: step.clone(), under_way: true });
                        self.emit(SagaEvent::StepCompleted { step, output, by_hand: None });
                    }
                    Err(error) => self.stuck(Some(&step), error),
                },
            }
        }
    }

    /// Whatever was under way may have happened.
    fn interrupted(&mut self) {
        if self.state.has_ended() {
            return;
        }
        let under_way = self.state.current().filter(|step| step.is_under_way(self.now));
        let (gone, known): (Vec<String>, Vec<String>) =
            under_way.map(|step| step.name.clone()).partition(|step| self.plan.step(step).is_none());
        if let Some(step) = gone.first() {
            // For a build that has them.
            self.interrupted = true;
            self.stuck(Some(step), self.is_gone(step));
            self.interrupted = false;
        }
        for step in known {
            self.is_interrupted(&step);
        }
    }

    /// An attempt of `name`, or of its undo, was under way, and who ran it is gone.
    fn is_interrupted(&mut self, name: &str) {
        let Some(step) = self.state.step(name).filter(|step| leaves_doubt(self.plan, step)) else { return };
        let error = "the process that ran it has ended".into();
        let failure = Failure { kind: FailureKind::Unknown, error, retry_after: None, is_final: false };
        match step.progress {
            Progress::Undoing | Progress::UndoWaiting => self.undo_failed(name, failure, false),
            _ => self.failed(name, failure, None, false),
        }
    }

    fn is_forward(&self) -> bool {
        matches!(self.state.phase, Phase::Forward | Phase::Stuck { undoing: false, .. })
    }

    fn begin_undo(&mut self, step: Option<String>, reason: String) {
        // Whether a call is under way, only who runs the instance knows: he gives it up (`Input::NeverTried`).
        let waits = |name: &str| self.plan.step(name).is_some_and(|planned| matches!(planned.kind, Kind::Wait { .. }));
        let abandoned = |step: &&StepState| step.is_open() && waits(&step.name);
        let abandoned = self.state.steps.iter().filter(abandoned).map(|step| step.name.clone()).collect();
        self.emit(SagaEvent::UndoBegan { step, reason, abandoned });
    }
}

/// Something to shorten a delay by that is not the same for all.
fn seed(step: &str, attempt: u32, now: DateTime<Utc>) -> u64 {
    let text = step.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    text.wrapping_add(u64::from(attempt)).wrapping_add(now.timestamp_micros().unsigned_abs()).wrapping_mul(0x9E37_79B9)
        >> 16
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
