//! Expectations: who misses it when something that began does not end.

use std::{marker::PhantomData, time::Duration};

use chrono::{DateTime, Utc};

use super::{Saga, Steps, state::later};
use crate::{Begin, Event, Id, Recorded};

/// Watches over what reactors and others do together: what one event begins, another one ends, in time.
///
/// What does not end in time is listed as a stuck saga under the expectation's name, and told to
/// [`Builder::on_attention`](crate::Builder::on_attention). If it ends later after all, it is completed.
pub trait Expectation: Send + Sync + 'static {
    /// Its stable name, among the sagas': lower case letters, digits and `_`.
    const NAME: &'static str;
    /// Where a new one begins to look at the log.
    const BEGIN: Begin = Begin::Now;
    /// The events it looks at.
    type Event: Event;

    /// What `event` begins, and in which time from then on it is to end.
    fn begin(event: &Recorded<Self::Event>) -> Option<(Id, Duration)>;

    /// What `event` ends.
    fn end(event: &Recorded<Self::Event>) -> Option<Id>;
}

/// An expectation as a saga that only waits.
pub(crate) struct Expected<E>(pub(crate) PhantomData<fn() -> E>);

impl<E: Expectation> Saga for Expected<E> {
    const NAME: &'static str = E::NAME;
    const BEGIN: Begin = E::BEGIN;
    type Event = E::Event;
    type Input = DateTime<Utc>;

    fn start(event: &Recorded<E::Event>) -> Option<(Id, DateTime<Utc>)> {
        E::begin(event).map(|(id, time)| (id, later(event.recorded_at, time)))
    }

    fn route(event: &Recorded<E::Event>) -> Option<Id> {
        E::end(event)
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps.wait("end", |event| E::end(event).map(|_| ())).until(|facts| *facts.input).or_stuck()
    }
}
