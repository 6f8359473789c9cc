//! Sagas: workflows over several aggregates and the outside world, which end completed, undone, or visibly stuck.
//!
//! ```text
//! log ─► router ─► an instance begins, or gets what it waits for ─► its stream `$<saga>-<id>`
//! engine: (state, input, now) ─► (events, effects) ─► runtime: a step, an undo, a timer ─► one append ─► engine
//! ```

mod control;
mod definition;
pub(crate) mod engine;
mod event;
mod expectation;
mod instance;
mod plan;
mod router;
mod runtime;
pub(crate) mod state;
mod steps;

use serde::{Serialize, de::DeserializeOwned};

pub use self::{
    control::{SagaCounts, SagaFilter, SagaInstance, SagaState, Sagas},
    event::{FailureKind, Outcome, SagaEvent},
    expectation::Expectation,
    plan::RetryPolicy,
    runtime::Attention,
    steps::{Cx, Facts, StepError, Steps},
};
pub(crate) use self::{
    definition::{Definition, Typed},
    expectation::Expected,
    router::{check_depth, model},
    runtime::{OnAttention, Runtime},
};
use crate::{Begin, Event, FailurePolicy, Id, Recorded};

/// A workflow of several steps, each with what undoes it.
///
/// An instance begins with an event of the log, runs its steps in order, and ends *completed*; or, when a step fails for good,
/// undoes what was done, the latest first, and ends *compensated*. What cannot go on by itself is *stuck*: visible, and for an
/// operator to retry, skip, resolve or cancel. All of it is in the instance's own stream ([`SagaEvent`]).
///
/// Steps run outside of transactions and at least once, always with the same key ([`Cx::key`]). After a crash, whoever takes an
/// instance over goes on at the step that was recorded. There are no rules of determinism: a step is found by its name.
///
/// # Source
/// H. Garcia-Molina, K. Salem, *Sagas*, 1987.
pub trait Saga: Send + Sync + Sized + 'static {
    /// The saga's stable name: lower case letters, digits and `_`.
    const NAME: &'static str;
    /// Raise it when running instances must not go on under the changed steps. Each ends under the version that it began with,
    /// which stays registered beside the new one until none is left.
    const VERSION: u32 = 1;
    /// Where a new saga begins to look at the log: at what comes from now on, or at its start.
    const BEGIN: Begin = Begin::Now;
    /// What becomes of an event that cannot be read, or from which no instance can begin.
    const FAILURES: FailurePolicy = FailurePolicy::PARK;
    /// The events it looks at: an aggregate's, or a union of several aggregates'.
    type Event: Event;
    /// What an instance begins with, stored with it.
    type Input: Serialize + DeserializeOwned + Send + Sync + 'static;

    /// Whether `event` begins an instance, with which id and what. The same id begins once.
    fn start(event: &Recorded<Self::Event>) -> Option<(Id, Self::Input)>;

    /// Which instance `event` is for, if one of its steps waits for it, or will.
    fn route(_event: &Recorded<Self::Event>) -> Option<Id> {
        None
    }

    /// Which instance `event` calls off, and why: what it has done is undone.
    fn cancel(_event: &Recorded<Self::Event>) -> Option<(Id, String)> {
        None
    }

    /// The steps, in order, behind none.
    fn steps(steps: Steps<Self>) -> Steps<Self>;
}
