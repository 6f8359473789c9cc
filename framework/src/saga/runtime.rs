//! Which instances this process runs: those that it begins, and those that are due and that nobody runs.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::Row;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{definition::Definition, instance::Instance};
use crate::{
    App, Follow, Id, InvalidInput, Position, StoreError, StreamId,
    app::WeakApp,
    breaker::{BreakerShown, Breakers},
    event::contract::Contracts,
    store::Annals,
    subscription::guarded,
};

/// An instance of a saga, or an [`Expectation`](crate::Expectation), that needs somebody to look at it.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// The saga, or the expectation.
    pub saga: String,
    /// The instance.
    pub id: Id,
    /// The step that it is stuck at.
    pub step: Option<String>,
    /// Why, and what helps.
    pub reason: String,
}

/// Who is told.
pub(crate) type OnAttention = Arc<dyn Fn(Attention) + Send + Sync>;

/// How often it is looked for what others left, and for what became due without a word.
pub(super) const LOOK: Duration = Duration::from_millis(500);
/// How soon it is looked again by a process that has not yet said that it is there.
const SOON: Duration = Duration::from_millis(30);
/// How often it is looked for what is owned here and not run, and how often breakers are shown that did not change.
const COUNTED: Duration = Duration::from_secs(10);
const SHOWN: Duration = Duration::from_secs(20);
/// How many instances are taken at once, and how soon it is looked for more: what is taken one by one costs a query each.
const TAKEN: usize = 100;
const TAKES: Duration = Duration::from_millis(10);
/// How soon it is asked again whether the log is read, and how many ends of it are remembered for that.
pub(super) const UNREAD: Duration = Duration::from_secs(1);
const MARKS: usize = 1_000;
/// How long what begins waits for room.
const MOMENT: Duration = Duration::from_millis(100);
/// How often it is looked whether somebody runs what is open.
const SERVED: Duration = Duration::from_secs(60);

pub(crate) struct Runtime {
    pub(crate) store: Annals,
    pub(crate) process: Uuid,
    definitions: Vec<Arc<dyn Definition>>,
    /// Which followers this process runs.
    pub(crate) follow: Follow,
    /// Which of the definitions.
    runs: Vec<Arc<dyn Definition>>,
    /// What the app is made of, once it is.
    rest: OnceLock<(Arc<Contracts>, WeakApp)>,
    /// Room for instances that begin, and, of a quarter, only for those that are due: neither waits for ever behind the other.
    slots: Arc<Semaphore>,
    spare_slots: Arc<Semaphore>,
    /// What runs here; and what is to run once that has ended, for a row that was taken again meanwhile.
    running: Mutex<HashMap<StreamId, Option<Waiting>>>,
    /// Types that somebody paused.
    paused: Mutex<HashSet<String>>,
    /// How far each saga is with reading, in time: for waits that are over.
    read: Mutex<HashMap<&'static str, Read>>,
    /// When room was waited for in vain.
    in_vain: Mutex<Option<Instant>>,
    /// The database's time, when it was heard of last.
    clock: Mutex<(DateTime<Utc>, Instant)>,
    /// Rung when there may be something to take.
    pub(crate) due: Notify,
    on_attention: Option<OnAttention>,
    pub(crate) breakers: Arc<Breakers>,
    pub(crate) stop: CancellationToken,
    tasks: TaskTracker,
    /// Whether there may be more to take than there is room for.
    is_full: AtomicBool,
    /// Writes so far, before and after each; and at which of them this process is to be as good as dead.
    writes: AtomicUsize,
    dies_at: Option<usize>,
}

/// An instance that waits for its turn, whether it was interrupted, and its room.
type Waiting = (Instance, bool, OwnedSemaphorePermit);

/// How far the log is read for a saga.
#[derive(Default)]
struct Read {
    /// All that was in the log then has reached the instances.
    until: Option<DateTime<Utc>>,
    /// How far the log was at later times, oldest first.
    marks: VecDeque<(DateTime<Utc>, Position)>,
    /// When the first of these was waited for in vain.
    in_vain: Option<Instant>,
}

/// That an instance runs here. A task that panics gives it up, too: then nobody runs it, and it is freed after a while.
struct Place {
    runtime: Arc<Runtime>,
    stream: StreamId,
    is_left: bool,
}

impl Place {
    /// Ends it. Returns what is to run next, in its place.
    fn leave(mut self) -> Option<Waiting> {
        let mut running = lock(&self.runtime.running);
        let next = running.get_mut(&self.stream).and_then(Option::take);
        // In one go: what comes now begins a task of its own.
        if next.is_none() {
            running.remove(&self.stream);
        }
        drop(running);
        self.is_left = true;
        next
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_left {
            lock(&self.runtime.running).remove(&self.stream);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Runtime {
    pub(crate) fn new(
        store: Annals,
        process: Uuid,
        definitions: Vec<Arc<dyn Definition>>,
        follow: Follow,
        on_attention: Option<OnAttention>,
        dies_at: Option<usize>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let spare = store.config().running_sagas / 4;
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(store.config().running_sagas - spare)),
            spare_slots: Arc::new(Semaphore::new(spare)),
            store,
            process,
            runs: definitions.iter().filter(|it| follow.has(it.name())).cloned().collect(),
            follow,
            definitions,
            rest: OnceLock::new(),
            running: Mutex::default(),
            paused: Mutex::default(),
            read: Mutex::default(),
            in_vain: Mutex::default(),
            clock: Mutex::new((Utc::now(), Instant::now())),
            due: Notify::new(),
            on_attention,
            breakers: Arc::default(),
            stop,
            tasks: TaskTracker::new(),
            is_full: AtomicBool::new(false),
            writes: AtomicUsize::new(0),
            dies_at,
        })
    }

    /// Begins to look for what is due, as part of `app`.
    pub(crate) async fn start(self: &Arc<Self>, contracts: Arc<Contracts>, app: WeakApp) -> Result<(), StoreError> {
        let _ = self.rest.set((contracts, app));
        let sql = self.store.inner.sql.read_clock.clone();
        let reading = self.store.inner.read("read the database's clock", |mut conn| {
            let sql = sql.clone();
            async move { sql.scalar().fetch_one(&mut *conn).await }
        });
        self.heard(reading.await?);
        if !self.runs.is_empty() || !self.breakers.shown().is_empty() {
            self.tasks.spawn(self.clone().keep_taking());
        }
        Ok(())
    }

    /// Knows whom the steps that run here call.
    ///
    /// # Errors
    /// Two targets of one name differ.
    pub(crate) fn add_targets(&self) -> Result<(), InvalidInput> {
        self.breakers.add_all(self.runs.iter().flat_map(|it| it.plan().steps()).filter_map(|step| step.target))
    }

    pub(crate) fn contracts(&self) -> &Contracts {
        static NONE: OnceLock<Contracts> = OnceLock::new();
        self.rest.get().map_or_else(|| NONE.get_or_init(Contracts::default), |(contracts, _)| contracts)
    }

    /// The app, unless it is gone.
    pub(crate) fn app(&self) -> Option<App> {
        self.rest.get()?.1.upgrade()
    }

    pub(crate) fn definition(&self, name: &str, version: u32) -> Option<Arc<dyn Definition>> {
        self.definitions.iter().find(|it| it.name() == name && it.version() == version).cloned()
    }

    /// The names of the sagas of this app.
    pub(crate) fn names(&self) -> BTreeSet<&'static str> {
        self.definitions.iter().map(|it| it.name()).collect()
    }

    /// The versions of the saga `name`, the newest first.
    pub(crate) fn versions(&self, name: &str) -> Vec<Arc<dyn Definition>> {
        let mut versions: Vec<_> = self.definitions.iter().filter(|it| it.name() == name).cloned().collect();
        versions.sort_by_key(|definition| std::cmp::Reverse(definition.version()));
        versions
    }

    /// Before and after each write of an instance. For tests that kill it there: then nothing more is written, ever.
    pub(crate) fn write_point(&self) -> Result<(), StoreError> {
        let nth = self.writes.fetch_add(1, Ordering::SeqCst) + 1;
        if self.dies_at.is_some_and(|at| nth >= at) { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// How many such points there were, and whether one of them was the end.
    #[cfg(all(unix, feature = "testing"))]
    pub(crate) fn writes(&self) -> (usize, bool) {
        let writes = self.writes.load(Ordering::SeqCst);
        (writes, self.dies_at.is_some_and(|at| writes >= at))
    }

    /// The time, by the database's clock.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        let (heard, at) = *lock(&self.clock);
        heard + TimeDelta::from_std(at.elapsed()).unwrap_or_default()
    }

    fn heard(&self, now: DateTime<Utc>) {
        *lock(&self.clock) = (now, Instant::now());
    }

    pub(crate) fn is_paused(&self, name: &str) -> bool {
        lock(&self.paused).contains(name)
    }

    /// Whether all that was in the log at `deadline` has reached the instances of the saga `name`.
    pub(crate) async fn has_read_all(&self, name: &'static str, deadline: DateTime<Utc>) -> bool {
        const WAITS: Duration = Duration::from_millis(200);
        let Some(app) = self.app() else { return false };
        let noted = {
            let mut read = lock(&self.read);
            let read = read.entry(name).or_default();
            if read.until.is_some_and(|until| deadline <= until) {
                return true;
            }
            // Not everyone waits, each with his room, for a reader that is behind.
            if read.in_vain.is_some_and(|at| at.elapsed() < UNREAD) {
                return false;
            }
            read.marks.iter().find(|(at, _)| deadline <= *at).copied()
        };
        // How far the log was at the first time after the deadline that is known of: an end that is always the last would run away.
        let (at, end) = match noted {
            Some(noted) => noted,
            None => {
                let now = self.now();
                let Ok(end) = self.store.safe_end().await else { return false };
                let mut read = lock(&self.read);
                let marks = &mut read.entry(name).or_default().marks;
                marks.truncate(MARKS - 1);
                marks.push_back((now, end));
                (now, end)
            }
        };
        let is_read = app.wait_for(name, end, WAITS).await.is_ok();
        let mut read = lock(&self.read);
        let read = read.entry(name).or_default();
        if is_read {
            read.until = read.until.max(Some(at));
            read.marks.retain(|(later, _)| *later > at);
        }
        read.in_vain = (!is_read).then(Instant::now);
        is_read
    }

    /// Room to run an instance that begins, if there is some in a moment. To run it here saves to look for it, to take it and to read
    /// it; where there is none for longer, somebody else may take it.
    pub(crate) async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        // Where all are taken by what takes long, the log is not kept waiting for each.
        if lock(&self.in_vain).is_some_and(|at| at.elapsed() < LOOK) {
            return self.slots.clone().try_acquire_owned().ok();
        }
        let stopped = self.stop.cancelled();
        tokio::select! {
            slot = timeout(MOMENT, self.slots.clone().acquire_owned()) => match slot {
                Ok(slot) => slot.ok(),
                Err(_) => {
                    *lock(&self.in_vain) = Some(Instant::now());
                    None
                }
            },
            () = stopped => None,
        }
    }

    /// Room to run an instance that is due, if there is.
    fn spare_slot(&self) -> Option<OwnedSemaphorePermit> {
        let spare = self.spare_slots.clone().try_acquire_owned();
        spare.or_else(|_| self.slots.clone().try_acquire_owned()).ok()
    }

    /// Runs an instance that this process holds.
    pub(crate) fn run(self: &Arc<Self>, instance: Instance, interrupted: bool, slot: OwnedSemaphorePermit) {
        let stream = instance.stream.clone();
        let mut next = Some((instance, interrupted, slot));
        match lock(&self.running).entry(stream.clone()) {
            Entry::Occupied(mut entry) => {
                // It was freed, or given up, and taken again before the task here had ended.
                if let Some((instance, ..)) = &mut next {
                    instance.doubt();
                }
                entry.insert(next);
                return;
            }
            Entry::Vacant(entry) => entry.insert(None),
        };
        let runtime = self.clone();
        self.tasks.spawn(async move {
            while let Some((instance, interrupted, slot)) = next {
                let place = Place { runtime: runtime.clone(), stream: stream.clone(), is_left: false };
                instance.run(interrupted).await;
                next = place.leave();
                drop(slot);
                if runtime.is_full.load(Ordering::Relaxed) {
                    runtime.due.notify_one();
                }
            }
        });
    }

    async fn keep_taking(self: Arc<Self>) {
        let (mut looked_at, mut counted_at) = (None::<Instant>, Instant::now());
        let (mut shown, mut shown_at, mut orders) = (vec![], Instant::now(), HashMap::new());
        // The first time, once this process has said what it has.
        let (mut serves_at, mut not_served) = (Instant::now() + COUNTED, BTreeSet::new());
        while !self.stop.is_cancelled() {
            if looked_at.is_none_or(|at| at.elapsed() >= LOOK) {
                looked_at = Some(Instant::now());
                let freeing = self.store.inner.sql.free_sagas.query();
                if let Err(error) = self.store.inner.reads.execute("free what lost processes ran", freeing).await {
                    tracing::warn!(%error, "what lost processes ran cannot be freed; tried again");
                }
                if let Err(error) = self.look().await {
                    tracing::warn!(%error, "what is paused or stuck cannot be looked up; tried again");
                }
                if shown_at.elapsed() > SHOWN {
                    (shown, shown_at) = (vec![], Instant::now());
                }
                if let Err(error) = self.show_breakers(&mut shown, &mut orders).await {
                    tracing::warn!(%error, "circuit breakers cannot be shown; tried again");
                }
            }
            if counted_at.elapsed() > COUNTED {
                counted_at = Instant::now();
                self.free_lost().await;
            }
            if serves_at <= Instant::now() {
                serves_at = Instant::now() + SERVED;
                if let Err(error) = self.warn_of_versions(&mut not_served).await {
                    tracing::warn!(%error, "it cannot be looked up whether somebody runs what is open; tried again");
                }
            }
            self.wake_waiting().await;
            let pause = match self.take().await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::warn!(%error, "sagas that are due cannot be taken; tried again");
                    LOOK
                }
            };
            sleep(TAKES).await;
            tokio::select! {
                _ = timeout(pause, self.due.notified()) => {}
                () = self.breakers.changed.notified() => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Hears what is paused, and tells of what is stuck.
    async fn look(&self) -> Result<(), StoreError> {
        let (sql, reads) = (&self.store.inner.sql, &self.store.inner.reads);
        let names: Vec<&str> = self.names().into_iter().collect();
        let rows = reads.all("list paused sagas", sql.list_paused.query().bind(names.clone())).await?;
        *lock(&self.paused) = rows.iter().map(|row| row.get(0)).collect();
        let Some(on_attention) = &self.on_attention else { return Ok(()) };
        for row in reads.all("take what is stuck", sql.take_attention.query().bind(names)).await? {
            let version: i64 = row.get(4);
            let stream = StreamId::stored(row.get(0));
            let attention = Attention {
                saga: row.get(1),
                id: Id::from(stream.id()),
                step: row.get(2),
                reason: row.get::<Option<String>, _>(3).unwrap_or_default(),
            };
            if let Err(error) = guarded(|| on_attention(attention)) {
                tracing::error!(%stream, %error, "whoever is told that a saga is stuck failed");
            }
            // If that cannot be noted, somebody is told again: rather twice than never.
            let noting = sql.told_attention.query().bind(stream.as_str()).bind(version);
            reads.execute("note that somebody was told", noting).await?;
        }
        Ok(())
    }

    /// Shows the breakers of this process if they changed, does as was ordered, and wakes what waited for one that closed.
    async fn show_breakers(
        &self,
        shown: &mut Vec<BreakerShown>,
        orders: &mut HashMap<String, i64>,
    ) -> Result<(), StoreError> {
        let (sql, reads) = (&self.store.inner.sql, &self.store.inner.reads);
        let now = self.breakers.shown();
        if now.is_empty() {
            return Ok(());
        }
        let reading = sql.read_breaker_orders.query();
        for row in reads.all("read what was ordered of circuit breakers", reading).await? {
            let (order, target): (i64, String) = (row.get(0), row.get(1));
            if orders.insert(target.clone(), order) != Some(order) {
                self.breakers.order(&target, row.get(2));
            }
        }
        let now = self.breakers.shown();
        let same = |a: &BreakerShown, b: &BreakerShown| {
            (a.target, a.state, a.failures, &a.last_error) == (b.target, b.state, b.failures, &b.last_error)
        };
        if now.len() != shown.len() || !now.iter().zip(shown.iter()).all(|(a, b)| same(a, b)) {
            let showing = sql
                .show_breakers
                .query()
                .bind(self.process)
                .bind(now.iter().map(|it| it.target).collect::<Vec<_>>())
                .bind(now.iter().map(|it| it.state).collect::<Vec<_>>())
                .bind(now.iter().map(|it| it.failures as i32).collect::<Vec<_>>())
                .bind(now.iter().map(|it| it.last_error.clone()).collect::<Vec<_>>())
                .bind(now.iter().map(|it| it.left.map(|left| left.as_secs_f64())).collect::<Vec<_>>());
            reads.execute("show circuit breakers", showing).await?;
            *shown = now;
        }
        Ok(())
    }

    /// Frees what this process owns without running it: an answer was lost on its way, or a task here ended as none should.
    async fn free_lost(&self) {
        let running: Vec<String> = lock(&self.running).keys().map(ToString::to_string).collect();
        let config = self.store.config();
        let after = (config.read_deadline.max(config.append_deadline) + LOOK).as_secs_f64() * 2.0;
        let freeing = self.store.inner.sql.free_lost_sagas.query().bind(self.process).bind(running).bind(after);
        match self.store.inner.reads.execute("free what nobody runs", freeing).await {
            Ok(0) => {}
            Ok(freed) => tracing::warn!(freed, "instances of sagas were this process's and not run; they are freed"),
            Err(error) => tracing::warn!(%error, "what nobody runs cannot be freed; tried again"),
        }
    }

    /// Says once which instances are open that nobody can run: their version is not registered in any process.
    async fn warn_of_versions(&self, known: &mut BTreeSet<(String, i32)>) -> Result<(), StoreError> {
        let names: BTreeSet<&str> = self.runs.iter().map(|it| it.name()).collect();
        let names: Vec<&str> = names.into_iter().collect();
        let reading = self.store.inner.sql.list_unserved.query().bind(names);
        let mut now = BTreeSet::new();
        for row in self.store.inner.reads.all("list versions of sagas that nobody runs", reading).await? {
            let (saga, version, instances): (String, i32, i64) = (row.get(0), row.get(1), row.get(2));
            if !known.contains(&(saga.clone(), version)) {
                tracing::error!(
                    saga,
                    version,
                    instances,
                    "no process that is alive has this version of the saga, so its instances do not go on: register its type \
                     beside the new one until none is left"
                );
            }
            now.insert((saga, version));
        }
        *known = now;
        Ok(())
    }

    /// Wakes what waited for targets that answer again.
    async fn wake_waiting(&self) {
        let closed = self.breakers.take_closed();
        if !closed.is_empty() {
            let waking = self.store.inner.sql.wake_sagas.query().bind(closed);
            // If it cannot be said, they are due a little later.
            if let Err(error) = self.store.inner.reads.execute("wake what waited for a target", waking).await {
                tracing::warn!(%error, "what waited for a target is not woken, and goes on when it is due");
            }
        }
    }

    /// Takes what is due, as far as there is room. Returns for how long there is nothing more to take.
    async fn take(self: &Arc<Self>) -> Result<Duration, StoreError> {
        self.is_full.store(true, Ordering::Relaxed);
        let mut slots: Vec<OwnedSemaphorePermit> = (0..TAKEN).map_while(|_| self.spare_slot()).collect();
        if slots.is_empty() {
            return Ok(LOOK);
        }
        let claiming = self
            .store
            .inner
            .sql
            .claim_sagas
            .query()
            .bind(self.process)
            .bind(self.runs.iter().map(|it| it.name()).collect::<Vec<_>>())
            .bind(self.runs.iter().map(|it| it.version() as i32).collect::<Vec<_>>())
            .bind(slots.len() as i64);
        let rows = self.store.inner.reads.all("take sagas that are due", claiming).await?;
        let (mut now, mut next) = (self.now(), None);
        let (mut taken, mut is_alive) = (0, true);
        for row in &rows {
            is_alive = row.get(4);
            (now, next) = (row.get(0), row.get::<Option<DateTime<Utc>>, _>(1));
            let Some(stream) = row.get::<Option<String>, _>(2) else { continue };
            let (Some((_, name)), Some(slot)) = (stream.split_once('$'), slots.pop()) else { continue };
            let name = name.split('-').next().unwrap_or_default();
            // What was taken is not paused, whatever was heard before.
            lock(&self.paused).remove(name);
            let Some(definition) = self.versions(name).into_iter().next() else { continue };
            let mut instance = Instance::new(self.clone(), definition, StreamId::stored(&stream));
            instance.hold();
            taken += 1;
            self.run(instance, row.get::<Option<bool>, _>(3).unwrap_or_default(), slot);
        }
        self.heard(now);
        if taken > 0 && slots.is_empty() {
            return Ok(Duration::ZERO);
        }
        self.is_full.store(false, Ordering::Relaxed);
        if !is_alive {
            return Ok(SOON);
        }
        let until = next.map_or(LOOK, |next| (next - now).to_std().unwrap_or_default());
        Ok(until.min(LOOK))
    }

    /// Begins nothing more, and waits for what is under way.
    pub(crate) async fn drain(&self, deadline: Instant) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout_at(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!(running = self.tasks.len(), "steps of sagas did not end within the drain deadline");
        }
    }
}
