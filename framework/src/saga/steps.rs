//! How a saga's steps are written down.

use std::{
    any::TypeId,
    collections::BTreeMap,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    Cx, Facts, Found, Saga, StepError,
    definition::NotCommitted,
    plan::{InVain, Kind, Plan, Planned, RetryPolicy, Rule},
    state::Taken,
};
use crate::{
    Aggregate, ExecuteError, Id, PayloadLimits, Recorded, StreamId, Target, event::encode::to_json, execute::Along,
    subscription::message,
};

type Fut<T> = BoxFuture<'static, Result<T, StepError>>;
pub(crate) type Run<S> = Box<dyn Fn(Cx<S>) -> Fut<Value> + Send + Sync>;
pub(crate) type Ask<S> = Box<dyn Fn(Cx<S>) -> Fut<Found<Value>> + Send + Sync>;
pub(crate) type Undo<S> = Box<dyn Fn(Cx<S>, Value) -> Fut<()> + Send + Sync>;
/// With what the step came to, for an undo.
pub(crate) type Command<S> =
    Box<dyn Fn(Cx<S>, Value, Along) -> BoxFuture<'static, Result<(), NotCommitted>> + Send + Sync>;
pub(crate) type Take<S> = Box<dyn Fn(&Recorded<<S as Saga>::Event>) -> Option<Result<Value, StepError>> + Send + Sync>;
pub(crate) type Refuse<S> = Box<dyn Fn(&Recorded<<S as Saga>::Event>) -> Option<String> + Send + Sync>;

/// Why a value is not of the type that a step comes to.
pub(crate) type Fits = fn(&Value) -> Result<(), String>;

/// What a step does.
pub(crate) struct Doing<S: Saga> {
    pub(crate) run: Option<Run<S>>,
    pub(crate) ask: Option<Ask<S>>,
    pub(crate) undo: Option<Undo<S>>,
    /// What it takes from an event, if that is one it waits for.
    pub(crate) take: Option<Take<S>>,
    /// Whether something can be what it comes to.
    pub(crate) fits: Option<Fits>,
    /// Why it has failed by an event.
    pub(crate) refuse: Option<Refuse<S>>,
    pub(crate) command: Option<Command<S>>,
    pub(crate) undo_command: Option<Command<S>>,
}

impl<S: Saga> Default for Doing<S> {
    fn default() -> Self {
        Self {
            run: None,
            ask: None,
            undo: None,
            take: None,
            fits: None,
            refuse: None,
            command: None,
            undo_command: None,
        }
    }
}

/// A command that commits with what it is given along.
async fn commit<S: Saga, A: Aggregate>(
    cx: Cx<S>,
    command: Result<(Id, A::Command), StepError>,
    along: Along,
) -> Result<(), NotCommitted> {
    let (id, command) = command.map_err(NotCommitted::Failed)?;
    let stream = StreamId::of(A::TYPE, id).map_err(|error| NotCommitted::Failed(StepError::business(error)))?;
    match cx.app.execute_along::<A>(stream, &command, cx.options, along).await {
        Ok(_) => Ok(()),
        Err(ExecuteError::Rejected(rejection)) => Err(NotCommitted::Failed(StepError::business(rejection))),
        Err(ExecuteError::Store(error)) => Err(error.into()),
    }
}

/// A saga's steps, in order. `T` is what the last one comes to.
///
/// What follows a step configures it: [`undo`](Steps::undo), [`ask`](Steps::ask), [`retry`](Steps::retry),
/// [`timeout`](Steps::timeout), [`when`](Steps::when).
pub struct Steps<S: Saga, T = ()> {
    pub(crate) plan: Plan,
    pub(crate) doing: BTreeMap<&'static str, Doing<S>>,
    /// The aggregates that commands go to, with the steps' names.
    pub(crate) aggregates: Vec<(TypeId, &'static str, &'static str)>,
    twice: Option<&'static str>,
    /// Something that was said of what is no such step.
    misplaced: Option<String>,
    /// Whether the last step is not to be configured any more.
    closed: bool,
    last: PhantomData<fn() -> T>,
}

/// What every output can do.
pub trait Output: Serialize + DeserializeOwned + Send + 'static {}
impl<T: Serialize + DeserializeOwned + Send + 'static> Output for T {}

impl<S: Saga> Steps<S> {
    /// Those of the saga.
    pub(crate) fn of_saga() -> Self {
        S::steps(Self::none())
    }

    fn none() -> Self {
        Self {
            plan: Plan::default(),
            doing: BTreeMap::new(),
            aggregates: vec![],
            twice: None,
            misplaced: None,
            closed: true,
            last: PhantomData,
        }
    }
}

/// The default time of a step, with all its attempts.
const STEP_TIME: Duration = Duration::from_secs(60 * 60);
/// The default time of one attempt.
const ATTEMPT_TIME: Duration = Duration::from_secs(30);

impl<S: Saga, T: Output> Steps<S, T> {
    fn add<U: Output>(mut self, name: &'static str, kind: Kind, timeout: Duration, doing: Doing<S>) -> Steps<S, U> {
        let fits: Fits = |output| U::deserialize(output).map(drop).map_err(|error| error.to_string());
        let doing = Doing { fits: Some(fits), ..doing };
        self.plan.stages.push(vec![Planned {
            name,
            kind,
            has_undo: false,
            undo_commits: false,
            retry: RetryPolicy::STEP,
            undo_retry: RetryPolicy::UNDO,
            timeout,
            attempt_timeout: ATTEMPT_TIME,
            target: None,
            when: None,
            until: None,
        }]);
        if self.doing.insert(name, doing).is_some() {
            self.twice.get_or_insert(name);
        }
        if name.contains(',') {
            let text = format!("a step of {} is called {name:?}: lists of steps are set apart by commas", S::NAME);
            self.misplaced.get_or_insert(text);
        }
        self.closed = false;
        self.cast()
    }

    fn cast<U>(self) -> Steps<S, U> {
        let Self { plan, doing, aggregates, twice, misplaced, closed, .. } = self;
        Steps { plan, doing, aggregates, twice, misplaced, closed, last: PhantomData }
    }

    /// Then `run`, which calls the outside world, or executes commands ([`Cx::execute`]).
    ///
    /// It may run more than once, always with the same [`Cx::key`]: whoever is called has to know the key, for as long as
    /// [`Target::key_life`](crate::Target) says. One who knows no keys gets [`RetryPolicy::NEVER`]: then an attempt of which nothing
    /// is known makes the instance stuck, and is not repeated. An attempt that does not end in
    /// [`attempt_timeout`](Steps::attempt_timeout), panics, or is cut off by the end of the process counts as
    /// [`unknown`](StepError::unknown).
    ///
    /// A step that failed has not happened, and is not undone. One that does several things may have done some of them: what takes
    /// those back is the undo of a step before it, which may do nothing else. A step without an [`undo`](Steps::undo) stays as it is
    /// when the rest is undone.
    pub fn step<U: Output, F>(self, name: &'static str, run: impl Fn(Cx<S>) -> F + Send + Sync + 'static) -> Steps<S, U>
    where
        F: Future<Output = Result<U, StepError>> + Send + 'static,
    {
        let run: Run<S> = Box::new(move |cx| {
            let running = run(cx);
            Box::pin(async move { output(name, &running.await?) })
        });
        let doing = Doing { run: Some(run), ..Doing::default() };
        self.add(name, Kind::Call { asks: false }, STEP_TIME, doing)
    }

    /// Then one command of an aggregate, which commits together with the step: it takes effect once, whatever happens, and costs no
    /// transaction of its own. A rejection is [`business`](StepError::business).
    pub fn command<A: Aggregate>(
        mut self,
        name: &'static str,
        command: impl Fn(&Cx<S>) -> Result<(Id, A::Command), StepError> + Send + Sync + 'static,
    ) -> Steps<S, ()> {
        let command: Command<S> = Box::new(move |cx, _, along| {
            let command = command(&cx);
            Box::pin(commit::<S, A>(cx, command, along))
        });
        self.aggregates.push((TypeId::of::<A>(), A::TYPE, name));
        self.add(name, Kind::Command, STEP_TIME, Doing { command: Some(command), ..Doing::default() })
    }

    /// Then waits for an event that [`Saga::route`] routes to the instance and from which `take` takes something. One that came
    /// before is kept for it. If none comes in its [`timeout`](Steps::timeout), the step has failed; or goes on with what
    /// [`or_else`](Steps::or_else) says. [`fails_by`](Steps::fails_by) says by which events it fails.
    ///
    /// So an outcome that somebody calls back with later is two steps, one that calls and one that waits: whoever is called back
    /// records it as an event of one of the application's aggregates.
    pub fn wait<U: Output>(
        self,
        name: &'static str,
        take: impl Fn(&Recorded<S::Event>) -> Option<U> + Send + Sync + 'static,
    ) -> Steps<S, U> {
        let take: Take<S> = Box::new(move |event| take(event).map(|taken| output(name, &taken)));
        let doing = Doing { take: Some(take), ..Doing::default() };
        self.add(name, Kind::Wait { in_vain: InVain::Fails, takes: true }, STEP_TIME, doing)
    }

    /// Then lets `time` pass.
    pub fn sleep(self, name: &'static str, time: Duration) -> Steps<S, ()> {
        let doing = Doing::default();
        self.add(name, Kind::Wait { in_vain: InVain::GoesOn(Box::new(|_| Ok(Value::Null))), takes: false }, time, doing)
    }

    /// What each step that waits for such takes from `event`.
    pub(crate) fn take(&self, event: &Recorded<S::Event>) -> Result<Vec<(String, Taken)>, StepError> {
        let taking = self.doing.iter().filter_map(|(name, doing)| {
            let refused = doing.refuse.as_ref().and_then(|refuse| refuse(event)).map(|reason| Ok(Err(reason)));
            let taken = refused.or_else(|| doing.take.as_ref()?(event).map(|taken| taken.map(Ok)))?;
            Some(taken.map(|taken| ((*name).to_owned(), taken)))
        });
        taking.collect()
    }

    /// Refuses what `step` cannot come to, with the reason.
    pub(crate) fn check_output(&self, step: &str, output: &Value) -> Result<(), String> {
        let fits = self.doing.get(step).and_then(|doing| doing.fits);
        fits.map_or(Ok(()), |fits| {
            fits(output).map_err(|error| format!("step {step} does not come to {output}: {error}"))
        })
    }

    /// What is wrong with the list, if something is.
    pub(crate) fn refusal(&self) -> Option<String> {
        let twice = self.twice.map(|name| format!("two steps of {} are called {name:?}: rename one", S::NAME));
        twice.or_else(|| self.misplaced.clone())
    }

    /// `what` was said of a step to which it does not apply.
    fn misplace(&mut self, what: &str) {
        let of = match self.plan.stages.last().and_then(|stage| stage.last()) {
            Some(step) if !self.closed => format!("step {:?}", step.name),
            _ => "no step in particular".into(),
        };
        let text = format!(
            "{what}() in the steps of {} is said of {of}: say it right behind the step that it is for",
            S::NAME
        );
        self.misplaced.get_or_insert(text);
    }

    /// The steps so far, with one output less to know of.
    pub fn end(mut self) -> Steps<S> {
        self.closed = true;
        self.cast()
    }

    fn last(&mut self, what: &str) -> Option<&mut Planned> {
        if self.closed {
            self.misplace(what);
            return None;
        }
        self.plan.stages.last_mut()?.last_mut()
    }

    fn last_wait(&mut self, what: &str) -> Option<&mut Planned> {
        let last = self.plan.stages.last().and_then(|stage| stage.last());
        if self.closed || !last.is_some_and(|last| matches!(last.kind, Kind::Wait { .. })) {
            self.misplace(what);
            return None;
        }
        self.plan.stages.last_mut()?.last_mut()
    }

    fn last_doing(&mut self, what: &str) -> Option<(&mut Planned, &mut Doing<S>)> {
        if self.closed {
            self.misplace(what);
            return None;
        }
        let planned = self.plan.stages.last_mut()?.last_mut()?;
        let doing = self.doing.get_mut(planned.name)?;
        Some((planned, doing))
    }

    /// The last step is undone so, once it is done: it gets what the step came to.
    ///
    /// It may run more than once, always with the same [`Cx::key`], which is not the step's. A
    /// [`business`](StepError::business) failure, or the end of its [`undo_retry`](Steps::undo_retry), makes the instance stuck.
    pub fn undo<F>(mut self, undo: impl Fn(Cx<S>, T) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), StepError>> + Send + 'static,
    {
        if let Some((planned, doing)) = self.last_doing("undo") {
            planned.has_undo = true;
            let name = planned.name;
            doing.undo = Some(Box::new(move |cx, output| match serde_json::from_value(output) {
                Ok(output) => Box::pin(undo(cx, output)),
                Err(error) => {
                    let error = StepError::unreadable(&format!("the output of step {name}"), error);
                    Box::pin(async move { Err(StepError::business(error)) })
                }
            }));
        }
        self
    }

    /// The last step is undone by one command, which commits together with the undo.
    pub fn undo_command<A: Aggregate>(
        mut self,
        command: impl Fn(&Cx<S>, T) -> Result<(Id, A::Command), StepError> + Send + Sync + 'static,
    ) -> Self {
        if let Some((planned, doing)) = self.last_doing("undo_command") {
            (planned.has_undo, planned.undo_commits) = (true, true);
            let name = planned.name;
            doing.undo_command = Some(Box::new(move |cx, output, along| {
                let output = serde_json::from_value(output);
                let output =
                    output.map_err(|error| StepError::unreadable(&format!("the output of step {name}"), error));
                let command = output.map_err(StepError::business).and_then(|output| command(&cx, output));
                Box::pin(commit::<S, A>(cx, command, along))
            }));
            self.aggregates.push((TypeId::of::<A>(), A::TYPE, name));
        }
        self
    }

    /// Asks what became of the last step when that is not known. [`Found`] says what the answers lead to: what is only not there is repeated
    /// under its key, and never counts as undone; whoever answers [`Found::Never`] has to refuse the key from then on, for a call
    /// that is still on its way must not have an effect. Who knows that the step was refused for good answers with
    /// [`refused`](StepError::refused). Any other error only says that there was no answer, and it is asked again.
    ///
    /// Without it, the step is repeated under the same key to find out.
    pub fn ask<F>(mut self, ask: impl Fn(Cx<S>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Found<T>, StepError>> + Send + 'static,
    {
        let Some((planned, doing)) = self.last_doing("ask") else { return self };
        let Kind::Call { asks } = &mut planned.kind else {
            self.misplace("ask");
            return self;
        };
        *asks = true;
        let name = planned.name;
        doing.ask = Some(Box::new(move |cx| {
            let asking = ask(cx);
            Box::pin(async move {
                Ok(match asking.await? {
                    Found::Happened(said) => Found::Happened(output(name, &said)?),
                    Found::NotSeen => Found::NotSeen,
                    Found::Never => Found::Never,
                })
            })
        }));
        self
    }

    /// Whom the last step calls, also to undo it and to ask: what else is called there shares a circuit breaker with it.
    pub fn calls(mut self, target: Target) -> Self {
        if let Some(planned) = self.last("calls") {
            planned.target = Some(target);
        }
        self
    }

    /// How often the last step is tried; [`RetryPolicy::STEP`] if this is not said.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        if let Some(planned) = self.last("retry") {
            planned.retry = policy;
        }
        self
    }

    /// How often the last step's undo is tried; [`RetryPolicy::UNDO`] if this is not said.
    pub fn undo_retry(mut self, policy: RetryPolicy) -> Self {
        if let Some(planned) = self.last("undo_retry") {
            planned.undo_retry = policy;
        }
        self
    }

    /// How long the last step may take, with all its attempts; an hour if this is not said. Then it has failed.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        if let Some(planned) = self.last("timeout") {
            planned.timeout = timeout;
        }
        self
    }

    /// How long one attempt of the last step, or of its undo, may take; 30 s if this is not said. Then nobody waits for it any more, and
    /// whether it happened is [`unknown`](StepError::unknown).
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        if let Some(planned) = self.last("attempt_timeout") {
            planned.attempt_timeout = timeout;
        }
        self
    }

    /// The last step is left out where `condition` does not hold.
    pub fn when(mut self, condition: impl Fn(&Facts<S>) -> bool + Send + Sync + 'static) -> Self {
        if let Some(planned) = self.last("when") {
            planned.when = Some(rule(move |facts: &Facts<S>| Ok(condition(facts))));
        }
        self
    }

    /// What the last step, which waits, goes on with when nothing came in its time.
    pub fn or_else(mut self, default: impl Fn(&Facts<S>) -> T + Send + Sync + 'static) -> Self {
        if let Some(Planned { kind: Kind::Wait { in_vain, .. }, name, .. }) = self.last_wait("or_else") {
            let name = *name;
            *in_vain = InVain::GoesOn(rule(move |facts: &Facts<S>| {
                output(name, &default(facts)).map_err(|error| error.message)
            }));
        }
        self
    }

    /// When nothing came in its time for the last step, which waits, somebody is to look: the instance is stuck, until it comes
    /// after all.
    pub fn or_stuck(mut self) -> Self {
        if let Some(Planned { kind: Kind::Wait { in_vain, .. }, .. }) = self.last_wait("or_stuck") {
            *in_vain = InVain::Stuck;
        }
        self
    }

    /// The last step, which waits, has failed by an event from which `refuse` takes a reason, as by a
    /// [`business`](StepError::business) failure. [`Saga::route`] has to route that event, too.
    pub fn fails_by(mut self, refuse: impl Fn(&Recorded<S::Event>) -> Option<String> + Send + Sync + 'static) -> Self {
        if self.last_wait("fails_by").is_some()
            && let Some((_, doing)) = self.last_doing("fails_by")
        {
            doing.refuse = Some(Box::new(refuse));
        }
        self
    }

    /// The last step, which waits, does so until this time instead of for a time.
    pub fn until(mut self, until: impl Fn(&Facts<S>) -> DateTime<Utc> + Send + Sync + 'static) -> Self {
        if let Some(planned) = self.last_wait("until") {
            planned.until = Some(rule(move |facts: &Facts<S>| Ok(until(facts))));
        }
        self
    }

    /// Then all of these steps at once, each by itself: none of them is before another. It goes on when each is done.
    pub fn at_once<U>(mut self, steps: impl FnOnce(Steps<S>) -> Steps<S, U>) -> Steps<S, ()> {
        let mut group = steps(Steps::none());
        if group.plan.stages.iter().any(|stage| stage.len() > 1) {
            let text =
                format!("at_once() in the steps of {} is said within another: say one behind the other", S::NAME);
            group.misplaced.get_or_insert(text);
        }
        self.plan.stages.push(group.plan.stages.into_iter().flatten().collect());
        for (name, doing) in group.doing {
            if self.doing.insert(name, doing).is_some() {
                self.twice.get_or_insert(name);
            }
        }
        self.aggregates.extend(group.aggregates);
        self.twice = self.twice.or(group.twice);
        self.misplaced = self.misplaced.or(group.misplaced);
        self.closed = true;
        self.cast()
    }
}

/// A rule about facts as one about a state. A panic in it is an error of it.
fn rule<S: Saga, T>(rule: impl Fn(&Facts<S>) -> Result<T, String> + Send + Sync + 'static) -> Rule<T> {
    Box::new(move |state| {
        let facts = Facts::of(state)?;
        let judged = catch_unwind(AssertUnwindSafe(|| rule(&facts)));
        judged.unwrap_or_else(|panic| Err(format!("a rule of {} panicked: {}", S::NAME, message(panic))))
    })
}

/// What a step came to, as it is stored.
fn output<T: Serialize>(name: &str, output: &T) -> Result<Value, StepError> {
    let what = format!("the output of step {name}");
    let text = to_json(&what, output, &PayloadLimits::default());
    let value = text
        .map_err(|error| error.to_string())
        .and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
    value.map_err(|error| StepError::unknown(format!("{what} cannot be stored: {error}")))
}
