//! `given / when / then` for sagas.

use std::{fmt::Debug, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::storage::{default_time, recorded, through_storage};
use crate::{
    Found, Id, Outcome, Position, Recorded, Saga, SagaEvent, StepError, Steps,
    saga::{
        engine::{Failure, Input, What, decide, effects, wakes_at},
        state::{Phase, Progress, State, StepState, later},
    },
};

/// Starts a test of the saga `S` that was given `events`, which [`recorded`](super::recorded) makes.
///
/// It follows one instance, the one that the first of the events begins or calls off, with the very state machine that runs sagas. Steps are
/// not run: the test says what each comes to, and time passes as it says. Everything that the saga records goes through the form in
/// which it is stored.
///
/// # Panics
/// If an event does not survive storage; the whole kit reports by panics.
///
/// # Example
/// ```
/// use annals::{Event, Id, Recorded, Saga, StepError, Steps, testing::{given_saga, recorded}};
/// use schemars::JsonSchema;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, JsonSchema)]
/// enum OrderEvent { OrderPlaced { cents: i64 } }
/// impl Event for OrderEvent {}
///
/// struct Fulfilment;
///
/// impl Saga for Fulfilment {
///     const NAME: &'static str = "fulfilment";
///     type Event = OrderEvent;
///     type Input = i64;
///
///     fn start(event: &Recorded<OrderEvent>) -> Option<(Id, i64)> {
///         let OrderEvent::OrderPlaced { cents } = &event.event;
///         Some((event.stream.id().into(), *cents))
///     }
///
///     fn steps(steps: Steps<Self>) -> Steps<Self> {
///         steps
///             .step("reserve", |_cx| async { Ok(7_u32) })
///             .undo(|_cx, _shelf| async { Ok(()) })
///             .step("charge", |_cx| async { Ok(()) })
///     }
/// }
///
/// given_saga::<Fulfilment>([recorded("order-1", OrderEvent::OrderPlaced { cents: 500 })])
///     .then_runs(["reserve"])
///     .succeeds("reserve", 7)
///     .then_runs(["charge"])
///     .fails("charge", StepError::business("declined"))
///     .then_undoes("reserve")
///     .undone("reserve")
///     .then_compensated();
/// ```
#[track_caller]
pub fn given_saga<S: Saga>(events: impl IntoIterator<Item = Recorded<S::Event>>) -> GivenSaga<S> {
    let given = GivenSaga {
        steps: Steps::of_saga(),
        state: State::default(),
        now: default_time(),
        id: None,
        history: vec![],
        position: Position::START,
    };
    given.when(events)
}

/// An instance of a saga after what has happened so far.
pub struct GivenSaga<S: Saga> {
    steps: Steps<S>,
    state: State,
    now: DateTime<Utc>,
    id: Option<Id>,
    history: Vec<SagaEvent>,
    position: Position,
}

impl<S: Saga> GivenSaga<S> {
    /// Further events arrive. Those of other instances are none of this one's business.
    #[track_caller]
    pub fn when(mut self, events: impl IntoIterator<Item = Recorded<S::Event>>) -> Self {
        for event in events {
            let read = through_storage(&event);
            let mut event = event.with_event(read);
            if event.position == Position::START {
                event.position = Position::new(self.position.get() + 1);
            }
            self.position = event.position;
            if let Some((id, input)) = S::start(&event) {
                self.id.get_or_insert_with(|| id.clone());
                if self.id.as_ref() == Some(&id) {
                    let input = serde_json::to_value(input).unwrap_or_else(|error| panic!("its input: {error}"));
                    self.tell(Input::Start { definition: S::VERSION, input });
                }
            }
            if self.id.is_some() && S::route(&event) == self.id {
                let outputs = self.steps.take(&event).unwrap_or_else(|error| panic!("{error}"));
                self.tell(Input::Event { position: event.position, outputs });
            }
            if let Some((id, reason)) = S::cancel(&event)
                && id == *self.id.get_or_insert_with(|| id.clone())
                && decide(&self.steps.plan, &self.state, Input::Cancel { reason: reason.clone() }, self.now).is_ok()
            {
                self.tell(Input::Cancel { reason });
            }
        }
        self
    }

    #[track_caller]
    fn tell(&mut self, input: Input) {
        let was_stuck = matches!(self.state.phase, Phase::Stuck { .. });
        match decide(&self.steps.plan, &self.state, input, self.now) {
            Ok(told) => self.record(told),
            Err(refused) => panic!("the saga refuses: {refused}"),
        }
        // Whose next attempt was not due when it was called off has none under way, nor has who was stuck: whoever runs it gives it up.
        let is_over = |step: &&StepState| {
            let waits = step.progress == Progress::Waiting && step.unknown == 0;
            waits && (was_stuck || !step.may_be_under_way(self.now))
        };
        let over = self.state.current().find(is_over).map(|step| step.name.clone());
        if let Some(step) = over.filter(|_| self.state.phase == Phase::Undoing) {
            self.tell(Input::NeverTried { step });
        }
    }

    #[track_caller]
    fn record(&mut self, (events, decided): (Vec<SagaEvent>, State)) {
        for event in events {
            let event = through_storage(&recorded("saga-1", event));
            self.state.apply(&event, self.now);
            self.history.push(event);
        }
        assert_eq!(self.state, decided, "what the saga decided does not survive storage");
    }

    #[track_caller]
    fn is_begun(&self, step: &str) {
        let begun = self.state.step(step).is_some_and(|step| step.begun > 0 || step.completed > 0);
        assert!(begun, "step {step} has not begun; {}", self.place());
    }

    /// `output` as it is stored, if it is one of `step`'s.
    #[track_caller]
    fn output(&self, step: &str, output: impl Serialize) -> serde_json::Value {
        let output = serde_json::to_value(output).unwrap_or_else(|error| panic!("its output: {error}"));
        if let Err(error) = self.steps.check_output(step, &output) {
            panic!("{error}");
        }
        output
    }

    /// The key that `step` is tried under.
    fn key(&self, step: &str) -> u32 {
        self.state.step(step).map_or(0, |step| step.dead_keys)
    }

    fn place(&self) -> String {
        let now = effects(&self.steps.plan, &self.state, self.now);
        format!(
            "to do now: {now:?}, next by time: {:?}, {:#?}",
            wakes_at(&self.steps.plan, &self.state, self.now),
            self.state
        )
    }

    #[track_caller]
    fn then_does<'s>(self, what: What, expected: impl IntoIterator<Item = &'s str>) -> Self {
        let doing = effects(&self.steps.plan, &self.state, self.now);
        let names: Vec<&str> = doing.iter().filter(|effect| effect.what == what).map(|effect| effect.step).collect();
        let expected: Vec<&str> = expected.into_iter().collect();
        assert!(names == expected, "expected {what:?} of {expected:?}; {}", self.place());
        self
    }

    /// `step` succeeds, however late, and comes to `output`.
    #[track_caller]
    pub fn succeeds(mut self, step: &str, output: impl Serialize) -> Self {
        self.is_begun(step);
        let output = self.output(step, output);
        self.tell(Input::Succeeded { step: step.into(), key: self.key(step), output });
        self
    }

    /// An attempt of `step` fails.
    #[track_caller]
    pub fn fails(mut self, step: &str, error: StepError) -> Self {
        self.is_begun(step);
        self.tell(Input::Failed { step: step.into(), key: self.key(step), failure: error.into() });
        self
    }

    /// Whoever is asked what became of `step` says so.
    #[track_caller]
    pub fn answers<T: Serialize + Debug>(mut self, step: &str, answer: Found<T>) -> Self {
        self.is_begun(step);
        let (name, key) = (step.to_owned(), self.key(step));
        match answer {
            Found::Happened(output) => return self.succeeds(step, output),
            Found::NotSeen => self.tell(Input::NotSeen { step: name, key }),
            Found::Never => self.tell(Input::NotDone { step: name, key }),
        }
        self
    }

    /// Whoever is asked what became of `step` does not say.
    #[track_caller]
    pub fn does_not_answer(mut self, step: &str, error: StepError) -> Self {
        self.is_begun(step);
        self.tell(Input::NotAnswered { step: step.into(), key: self.key(step), failure: error.into() });
        self
    }

    /// The undo of `step` succeeds.
    #[track_caller]
    pub fn undone(mut self, step: &str) -> Self {
        self.is_begun(step);
        self.tell(Input::Undone { step: step.into() });
        self
    }

    /// The undo of `step` fails.
    #[track_caller]
    pub fn undo_fails(mut self, step: &str, error: StepError) -> Self {
        self.is_begun(step);
        self.tell(Input::UndoFailed { step: step.into(), failure: error.into() });
        self
    }

    /// The process that ran the instance ends in the middle of whatever is under way, and another takes it over.
    #[track_caller]
    pub fn is_interrupted(mut self) -> Self {
        self.tell(Input::Interrupted);
        self
    }

    /// Time passes: what became due on the way happened at its time.
    #[track_caller]
    pub fn passes(mut self, time: Duration) -> Self {
        let until = later(self.now, time);
        while let Some(at) =
            wakes_at(&self.steps.plan, &self.state, self.now).filter(|at| *at > self.now && *at <= until)
        {
            self.now = at;
            self.tell(Input::Tick);
        }
        self.now = until;
        self.tell(Input::Tick);
        self
    }

    /// An operator has it go on at once.
    #[track_caller]
    pub fn retried(mut self, reason: &str) -> Self {
        self.tell(Input::Retry { reason: reason.into() });
        self
    }

    /// An operator has it leave out `step`, or its undo.
    #[track_caller]
    pub fn skipped(mut self, step: &str, reason: &str) -> Self {
        self.tell(Input::Skip { step: step.into(), reason: reason.into(), is_run: false });
        self
    }

    /// An operator says that `step` happened, and what it came to.
    #[track_caller]
    pub fn completed(mut self, step: &str, output: impl Serialize, reason: &str) -> Self {
        let output = self.output(step, output);
        self.tell(Input::Completed { step: step.into(), output, reason: reason.into(), is_run: false });
        self
    }

    /// An operator says that `step`, which was in doubt, did not happen and will not.
    #[track_caller]
    pub fn denied(mut self, step: &str, reason: &str) -> Self {
        self.tell(Input::Denied { step: step.into(), reason: reason.into(), is_run: false });
        self
    }

    /// An operator calls it off.
    #[track_caller]
    pub fn cancelled(mut self, reason: &str) -> Self {
        self.tell(Input::Cancel { reason: reason.into() });
        self
    }

    /// An operator declares it ended.
    #[track_caller]
    pub fn resolved(mut self, outcome: Outcome, reason: &str) -> Self {
        self.tell(Input::Resolve { outcome, reason: reason.into() });
        self
    }

    /// Now exactly these steps are run, or run again.
    #[track_caller]
    pub fn then_runs<'s>(self, steps: impl IntoIterator<Item = &'s str>) -> Self {
        self.then_does(What::Run, steps)
    }

    /// Now it is asked what became of `step`.
    #[track_caller]
    pub fn then_asks(self, step: &str) -> Self {
        self.then_does(What::Ask, [step])
    }

    /// Now `step` is undone.
    #[track_caller]
    pub fn then_undoes(self, step: &str) -> Self {
        self.then_does(What::Undo, [step])
    }

    /// Now nothing is to be done before this much time has passed, or before something comes; none if time brings nothing.
    #[track_caller]
    pub fn then_waits(self, time: Option<Duration>) -> Self {
        let doing = effects(&self.steps.plan, &self.state, self.now);
        assert!(doing.is_empty(), "expected it to wait; {}", self.place());
        let wakes = wakes_at(&self.steps.plan, &self.state, self.now);
        let expected = time.map(|time| later(self.now, time));
        // A delay is shortened by up to a quarter.
        let fits = match (wakes, expected) {
            (Some(at), Some(expected)) => {
                let shortest = (expected - self.now) * 3 / 4 - TimeDelta::milliseconds(1);
                at <= expected && at - self.now >= shortest
            }
            (wakes, expected) => wakes == expected,
        };
        assert!(fits, "expected it to wait {time:?}; {}", self.place());
        self
    }

    /// It has ended, with every step done.
    #[track_caller]
    pub fn then_completed(self) -> Self {
        assert!(self.state.phase == Phase::Completed, "expected it to be completed; {}", self.place());
        self
    }

    /// It has ended, with every step undone.
    #[track_caller]
    pub fn then_compensated(self) -> Self {
        assert!(self.state.phase == Phase::Compensated, "expected it to be compensated; {}", self.place());
        self
    }

    /// It has been declared ended.
    #[track_caller]
    pub fn then_resolved(self, outcome: Outcome) -> Self {
        assert!(self.state.phase == Phase::Resolved(outcome), "expected it to be resolved; {}", self.place());
        self
    }

    /// It is stuck at `step`.
    #[track_caller]
    pub fn then_stuck(self, at: &str) -> Self {
        let is_so = matches!(&self.state.phase, Phase::Stuck { step: Some(step), .. } if step == at);
        assert!(is_so, "expected it to be stuck at {at}; {}", self.place());
        self
    }

    /// These steps were undone, in this order.
    #[track_caller]
    pub fn then_undone<'s>(self, steps: impl IntoIterator<Item = &'s str>) -> Self {
        let undone = self.history.iter().filter_map(|event| match event {
            SagaEvent::StepUndone { step } => Some(step.as_str()),
            _ => None,
        });
        let (undone, expected): (Vec<&str>, Vec<&str>) = (undone.collect(), steps.into_iter().collect());
        assert!(undone == expected, "expected {expected:?} to be undone, got {undone:?}");
        self
    }

    /// `step` was left out.
    #[track_caller]
    pub fn then_skipped(self, step: &str) -> Self {
        let skipped = self.state.step(step).is_some_and(|step| step.progress == Progress::Skipped);
        assert!(skipped, "expected {step} to be skipped; {}", self.place());
        self
    }

    #[cfg(test)]
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// All that it has recorded, oldest first.
    pub fn history(&self) -> &[SagaEvent] {
        &self.history
    }
}

impl From<StepError> for Failure {
    fn from(error: StepError) -> Self {
        let StepError { kind, message, retry_after, is_final, .. } = error;
        Self { kind, error: message, retry_after, is_final }
    }
}
