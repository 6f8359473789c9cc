//! A saga of the application's as the runtime sees it: without its types.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use serde_json::Value;
use uuid::Uuid;

use super::{
    Cx, Facts, Found, Saga, StepError, Steps,
    engine::What,
    plan::{Kind, Plan},
    state::{Phase, State, Taken},
};
use crate::{
    App, Id, Options, Payload, PayloadLimits, Recorded, StoreError,
    event::{contract::Contracts, encode::to_json},
    execute::Along,
    subscription::{FollowError, guarded},
};

/// What an event means to a saga.
#[derive(Default)]
pub(crate) struct Look {
    pub(crate) start: Option<(Id, Value)>,
    pub(crate) route: Option<Id>,
    /// What steps that wait take from it.
    pub(crate) taken: Vec<(String, Taken)>,
    pub(crate) cancel: Option<(Id, String)>,
}

/// What a step is run with.
pub(crate) struct Call {
    pub(crate) id: Id,
    pub(crate) key: Uuid,
    pub(crate) command_key: Uuid,
    pub(crate) attempt: u32,
    pub(crate) now: DateTime<Utc>,
    pub(crate) state: Arc<State>,
    pub(crate) app: App,
    pub(crate) options: Options,
}

/// Why a command that was to commit with a step did not.
pub(crate) enum NotCommitted {
    Failed(StepError),
    /// It is not known whether it did; the stream will say.
    Unknown,
    /// The instance's stream is further than was thought.
    Overtaken,
}

pub(crate) trait Definition: Send + Sync {
    fn name(&self) -> &'static str;
    fn version(&self) -> u32;
    fn plan(&self) -> &Plan;
    fn look(&self, contracts: &Contracts, raw: &Recorded<Payload>) -> Result<Look, FollowError>;
    /// Refuses what a step cannot come to, with the reason.
    fn check_output(&self, step: &str, output: &Value) -> Result<(), String>;
    /// Whether this is one command, which commits with the step.
    fn commits(&self, step: &str, what: What) -> bool;
    /// What it will come to. An error is that this build cannot read what the step needs:
    /// nothing is tried then.
    fn attempt(&self, step: &str, what: What, call: Call) -> Result<Attempt, String>;
    fn command(&self, step: &str, what: What, call: Call, along: Along) -> Result<Committing, String>;
}

pub(crate) type Attempt = BoxFuture<'static, Result<Found<Value>, StepError>>;
pub(crate) type Committing = BoxFuture<'static, Result<(), NotCommitted>>;

/// A saga with its types.
pub(crate) struct Typed<S: Saga> {
    saga: Arc<S>,
    steps: Steps<S>,
}

impl<S: Saga> Typed<S> {
    pub(crate) fn new(saga: S) -> Self {
        Self { saga: Arc::new(saga), steps: Steps::of_saga() }
    }

    pub(crate) fn steps(&self) -> &Steps<S> {
        &self.steps
    }

    fn cx(&self, call: Call) -> Result<(Cx<S>, Arc<State>), String> {
        let facts = Facts::of(&call.state)?;
        let Call { id, key, command_key, attempt, now, state, app, options } = call;
        let reason = (state.phase == Phase::Undoing).then(|| state.reason.clone());
        Ok((Cx { saga: self.saga.clone(), id, key, command_key, attempt, now, reason, facts, app, options }, state))
    }
}

fn lost(step: &str) -> String {
    format!("step {step} is not in this build")
}

impl<S: Saga> Definition for Typed<S> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn version(&self) -> u32 {
        S::VERSION
    }

    fn plan(&self) -> &Plan {
        &self.steps.plan
    }

    fn look(&self, contracts: &Contracts, raw: &Recorded<Payload>) -> Result<Look, FollowError> {
        let event = contracts.decode::<S::Event>(raw).map_err(|error| FollowError::from(Box::new(error)))?;
        let handler = |error: String| FollowError::Handler(error.into());
        guarded(|| {
            let input = |input: S::Input| {
                let text =
                    to_json("its input", &input, &PayloadLimits::default()).map_err(|error| error.to_string())?;
                serde_json::from_str(&text).map_err(|error| error.to_string())
            };
            let start = S::start(&event).map(|(id, with)| input(with).map(|input| (id, input))).transpose();
            let route = S::route(&event);
            let taken = if route.is_some() { self.steps.take(&event) } else { Ok(vec![]) };
            Ok(Look {
                start: start.map_err(|error| handler(format!("{} cannot begin: {error}", S::NAME)))?,
                route,
                taken: taken.map_err(|error| handler(error.to_string()))?,
                cancel: S::cancel(&event),
            })
        })?
    }

    fn check_output(&self, step: &str, output: &Value) -> Result<(), String> {
        self.steps.check_output(step, output)
    }

    fn commits(&self, step: &str, what: What) -> bool {
        let doing = self.steps.doing.get(step);
        match what {
            What::Run => self.plan().step(step).is_some_and(|planned| matches!(planned.kind, Kind::Command)),
            What::Ask => false,
            What::Undo => doing.is_some_and(|doing| doing.undo_command.is_some()),
        }
    }

    fn attempt(&self, step: &str, what: What, call: Call) -> Result<Attempt, String> {
        let doing = self.steps.doing.get(step).ok_or_else(|| lost(step))?;
        let (cx, state) = self.cx(call)?;
        // What the closures do before they wait for anything is a part of the attempt, too.
        Ok(match (what, &doing.run, &doing.ask, &doing.undo) {
            (What::Run, Some(run), ..) => {
                let running = run(cx);
                Box::pin(async move { running.await.map(Found::Happened) })
            }
            (What::Ask, _, Some(ask), _) => ask(cx),
            (What::Undo, _, _, Some(undo)) => {
                let undoing = undo(cx, state.output(step).cloned().unwrap_or_default());
                Box::pin(async move { undoing.await.map(|()| Found::Happened(Value::Null)) })
            }
            _ => return Err(lost(step)),
        })
    }

    fn command(&self, step: &str, what: What, call: Call, along: Along) -> Result<Committing, String> {
        let doing = self.steps.doing.get(step).ok_or_else(|| lost(step))?;
        let command = if what == What::Undo { &doing.undo_command } else { &doing.command };
        let command = command.as_ref().ok_or_else(|| lost(step))?;
        let (cx, state) = self.cx(call)?;
        Ok(command(cx, state.output(step).cloned().unwrap_or_default(), along))
    }
}

impl From<StoreError> for NotCommitted {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict { .. } => Self::Overtaken,
            StoreError::UnknownOutcome { .. } => Self::Unknown,
            error => Self::Failed(error.into()),
        }
    }
}
