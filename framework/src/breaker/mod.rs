//! Whoever is called outside, and the circuit breaker before it: who does not answer is left alone for a while.

mod control;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

pub use self::control::{CircuitBreaker, CircuitBreakers};
use crate::InvalidInput;

/// Somebody outside whom steps and reactors call. All calls of a process to one name share a circuit breaker.
///
/// The circuit opens after [`failures`](Target::failures) in a row, or when a [`share`](Target::share) of at least
/// [`calls`](Target::calls) within [`window`](Target::window) failed. While it is open, nobody is called, and what would be called
/// waits without using up its attempts. After [`open_for`](Target::open_for) one call goes through: if it succeeds, the circuit
/// closes, and who waited goes on at once; if not, it is open for half as long again. A business failure is an answer, and no failure here.
///
/// ```
/// use annals::Target;
/// use std::time::Duration;
///
/// /// It remembers keys for a day.
/// const GATEWAY: Target = Target { key_life: Some(Duration::from_secs(86_400)), ..Target::new("gateway") };
/// ```
///
/// # Source
/// M. T. Nygard, *Release It!*, 2007: circuit breaker, bulkhead.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// How long it remembers an idempotency key: how long after a step's first attempt the step may be repeated under its key. For
    /// ever, if this is none.
    pub key_life: Option<Duration>,
    /// How many calls there are at once, at most. The default is 16.
    pub at_once: usize,
    /// After how many failures in a row its circuit opens. The default is 5.
    pub failures: u32,
    /// From which share of failures on, 0 to 1. The default is a half.
    pub share: f64,
    /// Of how many calls at least. The default is 20.
    pub calls: usize,
    /// Within which time. The default is 30 s.
    pub window: Duration,
    /// How long it stays open, and half as long after each call that was let through and failed. The default is 60 s.
    pub open_for: Duration,
}

impl Target {
    /// The defaults, for `name`.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            key_life: None,
            at_once: 16,
            failures: 5,
            share: 0.5,
            calls: 20,
            window: Duration::from_secs(30),
            open_for: Duration::from_secs(60),
        }
    }
}

/// What a breaker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Circuit {
    Closed,
    Open {
        until: Instant,
    },
    /// One call is under way that decides.
    Probing {
        since: Instant,
    },
    /// Somebody opened it, and nobody closed it.
    Held,
}

struct Breaker {
    target: Target,
    circuit: Circuit,
    in_row: u32,
    /// Calls of late, and whether they failed.
    calls: VecDeque<(Instant, bool)>,
    last_error: Option<String>,
    slots: Arc<Semaphore>,
}

/// How long a probe may take before another is let through, and how soon it is asked again meanwhile.
const PROBE: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(10);

impl Breaker {
    fn new(target: Target) -> Self {
        let slots = Arc::new(Semaphore::new(target.at_once.clamp(1, Semaphore::MAX_PERMITS)));
        Self { target, circuit: Circuit::Closed, in_row: 0, calls: VecDeque::new(), last_error: None, slots }
    }

    /// Lets a call through, or says how long to wait.
    fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.circuit {
            Circuit::Closed => Ok(()),
            Circuit::Open { until } if now < until => Err(until - now),
            Circuit::Probing { since } if now < since + PROBE => Err(SOON),
            Circuit::Held => Err(self.target.open_for.max(SOON)),
            Circuit::Open { .. } | Circuit::Probing { .. } => {
                self.circuit = Circuit::Probing { since: now };
                Ok(())
            }
        }
    }

    /// Learns how a call ended. Returns whether the circuit closed by it.
    fn learn(&mut self, error: Option<&str>, now: Instant) -> bool {
        let failed = error.is_some();
        if let Some(error) = error {
            self.last_error = Some(error.to_owned());
        }
        self.in_row = if failed { self.in_row + 1 } else { 0 };
        let since = now.checked_sub(self.target.window);
        self.calls.push_back((now, failed));
        while self.calls.front().is_some_and(|(at, _)| since.is_some_and(|since| *at < since)) {
            self.calls.pop_front();
        }
        match (self.circuit, failed) {
            (Circuit::Probing { .. }, false) => {
                (self.circuit, self.in_row) = (Circuit::Closed, 0);
                self.calls.clear();
                true
            }
            (Circuit::Probing { .. }, true) => {
                self.circuit = Circuit::Open { until: now + self.target.open_for / 2 };
                false
            }
            (Circuit::Closed, true) if self.is_too_much() => {
                let (target, failures, error) = (self.target.name, self.in_row, error);
                tracing::error!(target, failures, error, "too many calls fail: nobody is called for a while");
                self.circuit = Circuit::Open { until: now + self.target.open_for };
                false
            }
            _ => false,
        }
    }

    fn is_too_much(&self) -> bool {
        let failed = self.calls.iter().filter(|(_, failed)| *failed).count();
        let share = failed as f64 / self.calls.len().max(1) as f64;
        self.in_row >= self.target.failures.max(1)
            || (self.calls.len() >= self.target.calls && share >= self.target.share)
    }
}

/// A circuit breaker as it stands, in one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BreakerShown {
    pub(crate) target: &'static str,
    pub(crate) state: &'static str,
    /// How long it stays open.
    pub(crate) left: Option<Duration>,
    pub(crate) failures: u32,
    pub(crate) last_error: Option<String>,
}

/// The breakers of a process.
#[derive(Default)]
pub(crate) struct Breakers {
    breakers: Mutex<BTreeMap<&'static str, Breaker>>,
    /// Targets that answer again.
    closed: Mutex<Vec<&'static str>>,
    /// Rung when one closes.
    pub(crate) changed: Notify,
}

/// A call that was let through. Dropped without a word, as when its saga is another process's or the app ends, it says nothing about the
/// target, unless by a panic; but if it was the call that decides, another one does.
pub(crate) struct Admitted<'b> {
    breakers: &'b Breakers,
    target: &'static str,
    told: bool,
    /// Since when it is the call that decides, if it is.
    decides: Option<Instant>,
    _slot: OwnedSemaphorePermit,
}

impl Breakers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Breaker>> {
        self.breakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Knows `target` from now on.
    pub(crate) fn add(&self, target: Target) {
        self.lock().entry(target.name).or_insert_with(|| Breaker::new(target));
    }

    /// Knows all of `targets` from now on.
    ///
    /// # Errors
    /// Two of one name differ.
    pub(crate) fn add_all(&self, targets: impl IntoIterator<Item = Target>) -> Result<(), InvalidInput> {
        for target in targets {
            self.add(target);
            let known = self.lock().get(target.name).map(|breaker| breaker.target);
            if known.is_some_and(|known| known != target) {
                let name = target.name;
                return Err(InvalidInput::Other(format!(
                    "two targets are called {name:?} and differ: all that call {name:?} share one circuit breaker, so use one constant"
                )));
            }
        }
        Ok(())
    }

    /// Waits for its turn to call `target`; or says for how long it is not to be called. None if it had to wait, and the call is not
    /// `wanted` any more.
    pub(crate) async fn admit(
        &self,
        target: &Target,
        wanted: impl Future<Output = bool>,
    ) -> Result<Option<Admitted<'_>>, Duration> {
        self.add(*target);
        let slots = self.lock().get(target.name).map(|breaker| breaker.slots.clone()).ok_or(SOON)?;
        let slot = match slots.clone().try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => {
                // Nobody closes it.
                let slot = slots.acquire_owned().await.map_err(|_| SOON)?;
                if !wanted.await {
                    return Ok(None);
                }
                slot
            }
        };
        let now = Instant::now();
        let admitted = self.lock().get_mut(target.name).map_or(Ok(None), |breaker| {
            let is_probe = |breaker: &Breaker| breaker.circuit == Circuit::Probing { since: now };
            breaker.admit(now).map(|()| is_probe(breaker).then_some(now))
        });
        admitted
            .map(|decides| Some(Admitted { breakers: self, target: target.name, told: false, decides, _slot: slot }))
    }

    fn learn(&self, target: &'static str, error: Option<&str>) {
        let closed = self.lock().get_mut(target).is_some_and(|breaker| breaker.learn(error, Instant::now()));
        if closed {
            tracing::info!(target, "calls succeed again");
            self.closed.lock().unwrap_or_else(PoisonError::into_inner).push(target);
            self.changed.notify_one();
        }
    }

    /// The targets that answer again since this was asked last.
    pub(crate) fn take_closed(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.closed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens a circuit until it is closed, or closes it.
    pub(crate) fn order(&self, target: &str, opens: bool) {
        let mut breakers = self.lock();
        let Some(breaker) = breakers.get_mut(target) else { return };
        let was = breaker.circuit;
        (breaker.circuit, breaker.in_row) = (if opens { Circuit::Held } else { Circuit::Closed }, 0);
        breaker.calls.clear();
        let name = breaker.target.name;
        drop(breakers);
        if !opens && was != Circuit::Closed {
            self.closed.lock().unwrap_or_else(PoisonError::into_inner).push(name);
            self.changed.notify_one();
        }
    }

    pub(crate) fn shown(&self) -> Vec<BreakerShown> {
        let now = Instant::now();
        let shown = |breaker: &Breaker| {
            let (state, left) = match breaker.circuit {
                Circuit::Closed => ("closed", None),
                Circuit::Open { until } => ("open", Some(until.saturating_duration_since(now))),
                Circuit::Probing { .. } => ("probing", None),
                Circuit::Held => ("held open", None),
            };
            BreakerShown {
                target: breaker.target.name,
                state,
                left,
                failures: breaker.in_row,
                last_error: breaker.last_error.clone(),
            }
        };
        self.lock().values().map(shown).collect()
    }
}

impl Admitted<'_> {
    /// How the call ended: none if the target answered, whatever it said.
    pub(crate) fn end(mut self, error: Option<&str>) {
        self.told = true;
        self.breakers.learn(self.target, error);
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        let decides = self.decides.map(|since| Circuit::Probing { since });
        let is_undecided = self.breakers.lock().get(self.target).is_some_and(|it| Some(it.circuit) == decides);
        if std::thread::panicking() {
            self.breakers.learn(self.target, Some("a call panicked"));
        } else if is_undecided {
            self.breakers.learn(self.target, Some("the call that was to decide was cut off"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Breaker, Breakers, Target};

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> (Breaker, Instant) {
        (Breaker::new(Target::new("gateway")), Instant::now())
    }

    #[test]
    fn five_failures_in_a_row_open_it_for_a_minute_and_one_success_closes_it() {
        let (mut breaker, now) = breaker();
        for _ in 0..4 {
            breaker.learn(Some("down"), now);
        }
        breaker.learn(None, now);
        for _ in 0..4 {
            breaker.learn(Some("down"), now);
            assert_eq!(breaker.admit(now), Ok(()));
        }
        breaker.learn(Some("down"), now);
        assert_eq!(breaker.admit(now), Err(60 * SECOND));
        assert_eq!(breaker.admit(now + 59 * SECOND), Err(SECOND));

        let later = now + 60 * SECOND;
        assert_eq!(breaker.admit(later), Ok(()));
        assert!(breaker.admit(later).is_err(), "one call decides");
        assert!(!breaker.learn(Some("down"), later + SECOND));
        assert_eq!(breaker.admit(later + 11 * SECOND), Err(20 * SECOND));

        let again = later + 31 * SECOND;
        assert_eq!(breaker.admit(again), Ok(()));
        assert!(breaker.learn(None, again));
        assert_eq!(breaker.admit(again), Ok(()));
    }

    #[test]
    fn half_of_twenty_calls_within_half_a_minute_open_it() {
        let (mut breaker, now) = breaker();
        for nth in 0..19 {
            breaker.learn((nth % 2 == 0).then_some("down"), now);
        }
        assert_eq!(breaker.admit(now), Ok(()));
        breaker.learn(Some("down"), now);
        assert_eq!(breaker.admit(now), Err(60 * SECOND));

        let (mut breaker, now) = self::breaker();
        for nth in 0..100 {
            breaker.learn((nth % 2 == 0).then_some("down"), now + 2 * nth * SECOND);
        }
        assert_eq!(breaker.admit(now + 200 * SECOND), Ok(()), "not within half a minute");
    }

    #[test]
    fn a_probe_of_which_nothing_is_heard_lets_another_through() {
        let (mut breaker, now) = breaker();
        for _ in 0..5 {
            breaker.learn(Some("down"), now);
        }
        let later = now + 60 * SECOND;
        assert_eq!(breaker.admit(later), Ok(()));
        assert!(breaker.admit(later + 59 * SECOND).is_err());
        assert_eq!(breaker.admit(later + 60 * SECOND), Ok(()));
    }

    #[tokio::test]
    async fn a_call_that_is_cut_off_says_nothing_unless_it_decides_and_what_was_opened_by_hand_stays_open() {
        let open_for = Duration::from_millis(1);
        let (breakers, target) = (Breakers::default(), Target { failures: 1, open_for, ..Target::new("gateway") });
        drop(breakers.admit(&target, async { true }).await);
        assert_eq!((breakers.shown()[0].state, breakers.shown()[0].failures), ("closed", 0));
        let panics = breakers.admit(&target, async { true }).await;
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _call = panics;
            panic!("the call panics");
        }));
        assert!(panicked.is_err());
        assert_eq!((breakers.shown()[0].state, breakers.shown()[0].failures), ("open", 1));
        tokio::time::sleep(2 * open_for).await;
        let decides = breakers.admit(&target, async { true }).await;
        assert_eq!(breakers.shown()[0].state, "probing");
        drop(decides);
        assert_eq!(breakers.shown()[0].state, "open");
        assert_eq!(breakers.shown()[0].last_error.as_deref(), Some("the call that was to decide was cut off"));

        breakers.order("gateway", false);
        assert_eq!(breakers.take_closed(), ["gateway"]);
        breakers.admit(&target, async { true }).await.unwrap().unwrap().end(None);
        breakers.order("gateway", true);
        assert!(breakers.admit(&target, async { true }).await.is_err());
        assert_eq!((breakers.shown()[0].state, breakers.take_closed().len()), ("held open", 0));
    }
}
