//! Which instances this process runs: those that it begins, and those that are due and that nobody runs.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::Row;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{definition::Definition, instance::Instance};
use crate::{App, StoreError, StreamId, app::WeakApp, event::contract::Contracts, store::Annals};

/// How often it is looked for what others left, and for what became due without a word.
const LOOK: Duration = Duration::from_millis(500);
/// How many instances are taken at once.
const TAKEN: usize = 100;

pub(crate) struct Runtime {
    pub(crate) store: Annals,
    pub(crate) process: Uuid,
    definitions: Vec<Arc<dyn Definition>>,
    /// Which of them this process runs.
    runs: Vec<Arc<dyn Definition>>,
    /// What the app is made of, once it is.
    rest: OnceLock<(Arc<Contracts>, WeakApp)>,
    slots: Arc<Semaphore>,
    /// Types that somebody paused.
    paused: Mutex<HashSet<String>>,
    /// The database's time, when it was heard of last.
    clock: Mutex<(DateTime<Utc>, Instant)>,
    /// Rung when there may be something to take.
    pub(crate) due: Notify,
    /// Rung when something is stuck.
    pub(crate) attention: Notify,
    pub(crate) stop: CancellationToken,
    tasks: TaskTracker,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Runtime {
    pub(crate) fn new(
        store: Annals,
        process: Uuid,
        definitions: Vec<Arc<dyn Definition>>,
        runs: impl Fn(&str) -> bool,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(store.config().running_sagas)),
            store,
            process,
            runs: definitions.iter().filter(|it| runs(it.name())).cloned().collect(),
            definitions,
            rest: OnceLock::new(),
            paused: Mutex::default(),
            clock: Mutex::new((Utc::now(), Instant::now())),
            due: Notify::new(),
            attention: Notify::new(),
            stop,
            tasks: TaskTracker::new(),
        })
    }

    /// Begins to look for what is due, as part of `app`.
    pub(crate) fn start(self: &Arc<Self>, contracts: Arc<Contracts>, app: WeakApp) {
        let _ = self.rest.set((contracts, app));
        if !self.runs.is_empty() {
            self.tasks.spawn(self.clone().keep_taking());
        }
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

    /// Room to run another instance, if there is.
    pub(crate) fn slot(&self) -> Option<OwnedSemaphorePermit> {
        if self.stop.is_cancelled() { None } else { self.slots.clone().try_acquire_owned().ok() }
    }

    /// Runs an instance that this process holds.
    pub(crate) fn run(self: &Arc<Self>, instance: Instance, interrupted: bool, slot: OwnedSemaphorePermit) {
        let runtime = self.clone();
        self.tasks.spawn(async move {
            instance.run(interrupted).await;
            drop(slot);
            runtime.due.notify_one();
        });
    }

    async fn keep_taking(self: Arc<Self>) {
        let mut freed_at = None::<Instant>;
        while !self.stop.is_cancelled() {
            if freed_at.is_none_or(|at| at.elapsed() >= LOOK) {
                freed_at = Some(Instant::now());
                let freeing = self.store.inner.sql.free_sagas.query();
                if let Err(error) = self.store.inner.reads.execute("free what lost processes ran", freeing).await {
                    tracing::warn!(%error, "what lost processes ran cannot be freed; tried again");
                }
            }
            let pause = match self.take().await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::warn!(%error, "sagas that are due cannot be taken; tried again");
                    LOOK
                }
            };
            tokio::select! {
                _ = timeout(pause, self.due.notified()) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Takes what is due, as far as there is room. Returns for how long there is nothing more to take.
    async fn take(self: &Arc<Self>) -> Result<Duration, StoreError> {
        let mut slots: Vec<OwnedSemaphorePermit> = (0..TAKEN).map_while(|_| self.slot()).collect();
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
        let mut taken = 0;
        for row in &rows {
            (now, next) = (row.get(0), row.get::<Option<DateTime<Utc>>, _>(1));
            let Some(stream) = row.get::<Option<String>, _>(2) else { continue };
            let (Some((_, name)), Some(slot)) = (stream.split_once('$'), slots.pop()) else { continue };
            let name = name.split('-').next().unwrap_or_default();
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
