//! Which process runs what: each partition of each follower has one owner at a time.
//!
//! Every process says once a second that it is alive, by the database's clock, and looks at what there is to run. What
//! nobody alive owns it takes, up to its share; what it has above its share it gives up. A lease only saves work: what an
//! owner does commits under the checkpoint's fence, which a new owner moves on. So an owner that was paused and wakes up
//! late changes nothing.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use futures::future::join_all;
use sqlx::{Row, postgres::PgRow};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use uuid::Uuid;

use super::{
    batch::{BatchSql, Unit},
    model::Model,
    rebuild,
    runner::{Runner, Setting},
    status::{FollowerState, Seat, Shown},
    tail::Tail,
    wake_up,
};
use crate::{Position, error::StoreError, sql::StoreName, store::Annals};

/// How often a process says that it is alive, and how long that holds.
const BEAT: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(3);
/// How often the store is asked for what runs elsewhere, while somebody waits for it.
const OBSERVE: Duration = Duration::from_millis(10);

/// A follower of this app: its model, and what is shown of it.
pub(crate) struct Registered {
    pub(crate) model: Model,
    pub(crate) seat: Arc<Seat>,
    /// Whether this process may run it.
    pub(crate) runs: bool,
}

type Key = (usize, i64, i32);

/// A row of `list_units.sql`.
struct Listed {
    /// Which of the registered followers.
    nth: usize,
    generation: i64,
    partition: i32,
    partitions: i32,
    version: i32,
    live: bool,
    schema: String,
    state: String,
    reason: Option<String>,
    position: Position,
    owner: Option<Uuid>,
    owner_alive: bool,
    due: bool,
    attempts: i32,
    last_error: Option<String>,
    failed_position: Option<i64>,
    next_attempt_at: Option<chrono::DateTime<chrono::Utc>>,
    parked: i64,
    runners: Vec<Uuid>,
}

impl Listed {
    fn key(&self) -> Key {
        (self.nth, self.generation, self.partition)
    }

    fn shown(&self, own_version: u32) -> Shown {
        let state = match &*self.state {
            "paused" => FollowerState::Paused,
            "halted" => FollowerState::Halted,
            _ if self.version != own_version as i32 => FollowerState::OtherVersion,
            _ if self.attempts > 0 => FollowerState::Retrying,
            _ if self.owner_alive => FollowerState::Running,
            _ => FollowerState::Starting,
        };
        let mut shown = Shown::new(state, self.position);
        shown.parked = self.parked;
        shown.attempts = self.attempts.unsigned_abs();
        shown.last_error = self.reason.clone().or_else(|| self.last_error.clone());
        shown.failed_position = self.failed_position.map(Position::new);
        shown.next_attempt_at = self.next_attempt_at;
        shown
    }
}

/// A partition that this process runs.
struct Running {
    task: JoinHandle<()>,
    stop: CancellationToken,
    due: Arc<Notify>,
    unit: Unit,
    /// Where it stood when the store was looked at last, and before: for its rate.
    position: Position,
    seen: (Instant, Position),
    rate: f64,
}

/// A coordinator that runs.
pub(crate) struct Started {
    /// Ends once everything is given up.
    pub(crate) task: JoinHandle<()>,
    pub(crate) tail: Tail,
    /// This process, as the store knows it.
    pub(crate) process: Uuid,
}

pub(crate) struct Coordinator {
    store: Annals,
    process: Uuid,
    followers: Arc<Vec<Registered>>,
    tail: Tail,
    sql: Arc<BatchSql>,
    running: HashMap<Key, Running>,
    /// Since when something that this process might run has had nobody.
    free_since: HashMap<Key, Instant>,
    /// Handlers that never ended.
    hung: Arc<AtomicUsize>,
    /// Rung when somebody changed what is to run, in any process.
    changed: Arc<Notify>,
    /// Rung when there may be something to rebuild.
    asked: Arc<Notify>,
    host: String,
}

impl Coordinator {
    /// Starts to run `followers`, until `stop`.
    pub(crate) fn start(
        store: Annals,
        process: Uuid,
        followers: Arc<Vec<Registered>>,
        changed: Arc<Notify>,
        stop: CancellationToken,
    ) -> Started {
        let reading = CancellationToken::new();
        let tail = Tail::start(store.clone(), changed.clone(), reading.clone());
        let own_tail = tail.clone();
        let observer = tokio::spawn(observe(store.clone(), followers.clone(), stop.clone()));
        kick(stop.clone());
        let asked = Arc::new(Notify::new());
        let keep = |shadows| rebuild::keep_doing(store.clone(), followers.clone(), asked.clone(), shadows);
        let (chores, shadows) = (tokio::spawn(keep(false)), tokio::spawn(keep(true)));
        let coordinator = Self {
            asked,
            sql: Arc::new(BatchSql::new(&store.inner.sql)),
            process,
            running: HashMap::new(),
            free_since: HashMap::new(),
            hung: Arc::default(),
            host: host(),
            store,
            followers,
            tail,
            changed,
        };
        let task = tokio::spawn(async move {
            let _others = [observer, chores, shadows].map(AbortOnDropHandle::new);
            coordinator.run(stop).await;
            reading.cancel();
        });
        Started { task, tail: own_tail, process }
    }

    async fn run(mut self, stop: CancellationToken) {
        let mut failures = 0_u32;
        let mut neighbours_at = Instant::now();
        loop {
            let turn = async {
                self.turn().await?;
                if neighbours_at <= Instant::now() {
                    neighbours_at = Instant::now() + 2 * BEAT;
                    self.bury_neighbours().await?;
                }
                Ok::<_, StoreError>(())
            };
            match turn.await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, failures, "what is to run could not be looked at; it is tried again");
                    self.show_trouble(&error.to_string());
                }
            }
            tokio::select! {
                () = sleep(BEAT) => {}
                () = self.changed.notified() => self.asked.notify_waiters(),
                () = stop.cancelled() => break,
            }
        }
        self.leave().await;
    }

    /// Says that this process lives, and starts and stops what it is to run.
    async fn turn(&mut self) -> Result<(), StoreError> {
        self.beat().await?;
        let listed = self.list().await?;
        self.stop_lost(&listed).await?;
        self.show(&listed);
        let claimed = self.claim(&listed).await?;
        for unit in listed.iter().filter(|unit| claimed.contains(&unit.key())) {
            self.run_unit(unit);
        }
        for unit in &listed {
            let Some(running) = self.running.get_mut(&unit.key()) else { continue };
            running.position = unit.position;
            if unit.due {
                running.due.notify_one();
            }
        }
        Ok(())
    }

    async fn beat(&mut self) -> Result<(), StoreError> {
        let config = self.store.config();
        for running in self.running.values_mut() {
            let (at, position) = running.seen;
            if at.elapsed() >= BEAT / 2 {
                running.rate = (running.position.get() - position.get()).max(0) as f64 / at.elapsed().as_secs_f64();
                running.seen = (Instant::now(), running.position);
            }
        }
        let work: Vec<String> = self
            .running
            .iter()
            .map(|((nth, generation, partition), running)| {
                let name = self.followers[*nth].model.name;
                let rate = running.rate;
                format!(r#"{{"follower":"{name}","generation":{generation},"partition":{partition},"rate":{rate:.1}}}"#)
            })
            .collect();
        let runs: Vec<String> =
            self.followers.iter().filter(|follower| follower.runs).flat_map(|follower| follower.model.runs()).collect();
        let beating = self
            .store
            .inner
            .sql
            .beat
            .query()
            .bind(self.process)
            .bind(&config.application_name)
            .bind(&self.host)
            .bind(std::process::id() as i32)
            .bind(runs)
            .bind(format!("[{}]", work.join(",")))
            .bind(LEASE.as_secs_f64());
        self.store.inner.reads.execute("say that this process is alive", beating).await.map(drop)
    }

    async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let names: Vec<&str> = self.followers.iter().map(|follower| follower.model.name).collect();
        let listing = self.store.inner.sql.list_units.query().bind(names).bind(self.process);
        let rows = self.store.inner.reads.all("list what is to run", listing).await?;
        Ok(rows.iter().filter_map(|row| self.listed(row)).collect())
    }

    fn listed(&self, row: &PgRow) -> Option<Listed> {
        let name: &str = row.get("follower");
        Some(Listed {
            nth: self.followers.iter().position(|follower| follower.model.name == name)?,
            generation: row.get("generation"),
            partition: row.get("partition"),
            partitions: row.get("partitions"),
            version: row.get("version"),
            live: row.get::<&str, _>("purpose") == "live",
            schema: row.get("schema_name"),
            state: row.get("state"),
            reason: row.get("reason"),
            position: Position::new(row.get("position")),
            owner: row.get("owner"),
            owner_alive: row.get("owner_alive"),
            due: row.get::<Option<bool>, _>("due").unwrap_or_default(),
            attempts: row.get("attempts"),
            last_error: row.get("last_error"),
            failed_position: row.get("failed_position"),
            next_attempt_at: row.get("next_attempt_at"),
            parked: row.get("parked"),
            runners: row.get("runners"),
        })
    }

    /// Whether this process may run `unit`.
    fn fits(&self, unit: &Listed) -> bool {
        let follower = &self.followers[unit.nth];
        follower.runs
            && unit.version == follower.model.version as i32
            && unit.state == "running"
            && unit.runners.contains(&self.process)
    }

    /// Stops what is not this process's any more, and gives up what is not to run, or is above its share.
    async fn stop_lost(&mut self, listed: &[Listed]) -> Result<(), StoreError> {
        let mut own: Vec<&Listed> = listed.iter().filter(|unit| unit.owner == Some(self.process)).collect();
        let mut given: Vec<Key> = own.iter().filter(|unit| !self.fits(unit)).map(|unit| unit.key()).collect();
        own.retain(|unit| self.fits(unit));
        given.extend(self.to_give(listed, &own));
        let lost = self.running.iter().filter(|(key, running)| {
            let is_own = listed.iter().any(|unit| unit.key() == **key && unit.owner == Some(self.process));
            let now = listed.iter().find(|unit| unit.key() == **key);
            let is_moved = now.is_some_and(|now| {
                (&*now.schema, now.partitions) != (running.unit.schema.as_str(), running.unit.partitions)
            });
            running.task.is_finished() || !is_own || is_moved || given.contains(key)
        });
        let lost: Vec<Key> = lost.map(|(key, _)| *key).collect();
        let lost: Vec<Running> = lost.iter().filter_map(|key| self.running.remove(key)).collect();
        lost.iter().for_each(|running| running.stop.cancel());
        // They get a moment to save their place; what is late commits nothing.
        join_all(lost.into_iter().map(|mut running| async move {
            if timeout(BEAT, &mut running.task).await.is_err() {
                running.task.abort();
            }
        }))
        .await;
        if !given.is_empty() {
            self.release(&given).await?;
            wake_up::tell(&self.store, &wake_up::control(&self.store)).await;
        }
        // One that ended by itself and is still this process's begins again.
        let again: Vec<&Listed> = own
            .into_iter()
            .filter(|unit| !given.contains(&unit.key()) && !self.running.contains_key(&unit.key()))
            .collect();
        for unit in again {
            self.run_unit(unit);
        }
        Ok(())
    }

    /// How many partitions each process has.
    fn owned(listed: &[Listed]) -> HashMap<Uuid, usize> {
        let mut owned = HashMap::new();
        for owner in listed.iter().filter(|unit| unit.owner_alive).filter_map(|unit| unit.owner) {
            *owned.entry(owner).or_default() += 1;
        }
        owned
    }

    /// Which of its partitions this process gives to others that have less.
    fn to_give(&self, listed: &[Listed], own: &[&Listed]) -> Vec<Key> {
        let (mut owned, mut mine, mut given) = (Self::owned(listed), own.len(), vec![]);
        for unit in own {
            let others = unit.runners.iter().filter(|runner| **runner != self.process);
            let poorest = others.min_by_key(|runner| owned.get(*runner).copied().unwrap_or_default());
            let Some(poorest) = poorest else { continue };
            let theirs = owned.entry(*poorest).or_default();
            if *theirs + 1 < mine {
                *theirs += 1;
                mine -= 1;
                given.push(unit.key());
            }
        }
        given
    }

    /// Takes what is free: if no other that may run it has less, or if it has been free for long.
    async fn claim(&mut self, listed: &[Listed]) -> Result<Vec<Key>, StoreError> {
        let free: Vec<&Listed> = listed.iter().filter(|unit| !unit.owner_alive && self.fits(unit)).collect();
        self.free_since.retain(|key, _| free.iter().any(|unit| unit.key() == *key));
        let owned = Self::owned(listed);
        let mut mine = owned.get(&self.process).copied().unwrap_or_default();
        let mut wanted = vec![];
        for unit in free {
            let since = *self.free_since.entry(unit.key()).or_insert_with(Instant::now);
            let of = |runner: &Uuid| owned.get(runner).copied().unwrap_or_default();
            let is_poorest = unit.runners.iter().all(|runner| *runner == self.process || of(runner) >= mine);
            if is_poorest || since.elapsed() > LEASE {
                mine += 1;
                wanted.push(unit);
            }
        }
        if wanted.is_empty() {
            return Ok(vec![]);
        }
        for owner in wanted.iter().filter_map(|unit| unit.owner) {
            self.end_batches_of(owner).await;
        }
        let claiming = self
            .store
            .inner
            .sql
            .claim_units
            .query()
            .bind(self.process)
            .bind(wanted.iter().map(|unit| self.followers[unit.nth].model.name).collect::<Vec<_>>())
            .bind(wanted.iter().map(|unit| unit.generation).collect::<Vec<_>>())
            .bind(wanted.iter().map(|unit| unit.partition).collect::<Vec<_>>());
        let rows = self.store.inner.reads.all("take what nobody runs", claiming).await?;
        let got = rows.iter().map(|row| (row.get::<&str, _>(0), row.get::<i64, _>(1), row.get::<i32, _>(2)));
        let got: Vec<_> = got.collect();
        let is_got =
            |unit: &&&Listed| got.contains(&(self.followers[unit.nth].model.name, unit.generation, unit.partition));
        Ok(wanted.iter().filter(is_got).map(|unit| unit.key()).collect())
    }

    /// Ends the transactions that a process left open which is not alive: stopped, or cut off. It need not succeed: they end.
    async fn end_batches_of(&self, owner: Uuid) {
        let ending = self.store.inner.sql.end_batches.query().bind(owner);
        match self.store.inner.reads.optional("end what a lost process left open", ending).await {
            Ok(row) => {
                let ended: i64 = row.map_or(0, |row| row.get(0));
                if ended > 0 {
                    tracing::warn!(%owner, ended, "a process that is not heard of had open transactions; they were ended");
                }
            }
            Err(error) => tracing::debug!(%error, "what a lost process left open could not be ended"),
        }
    }

    fn run_unit(&mut self, listed: &Listed) {
        let follower = &self.followers[listed.nth];
        let unit = Unit {
            name: follower.model.name,
            generation: listed.generation,
            partition: listed.partition,
            partitions: listed.partitions,
            shadow: !listed.live,
            schema: StoreName::stored(listed.schema.clone()),
        };
        let (stop, due) = (CancellationToken::new(), Arc::new(Notify::new()));
        follower.seat.show(unit.generation, unit.partition, |shown| {
            (shown.here, shown.state) = (true, FollowerState::Starting);
        });
        let setting = Setting {
            store: self.store.clone(),
            owner: self.process,
            seat: follower.seat.clone(),
            follower: (follower.model.follower)(&unit),
            filter: follower.model.filter(&unit),
            policy: follower.model.policy,
            sql: self.sql.clone(),
            due: due.clone(),
            hung: self.hung.clone(),
            changed: self.changed.clone(),
            stop: stop.clone(),
        };
        let task = tokio::spawn(Runner::new(setting, unit.clone(), &self.tail).run());
        let position = listed.position;
        let running = Running { task, stop, due, unit, position, seen: (Instant::now(), position), rate: 0.0 };
        self.running.insert(listed.key(), running);
    }

    /// Shows what the store says of the live partitions, and leaves what this process runs to its runners.
    fn show(&self, listed: &[Listed]) {
        for (nth, follower) in self.followers.iter().enumerate() {
            let live = listed.iter().filter(|unit| unit.nth == nth && unit.live);
            let known: BTreeMap<(i64, i32), Shown> = live
                .map(|unit| {
                    let here = self.running.contains_key(&unit.key());
                    let own = follower.seat.get(unit.generation, unit.partition).filter(|_| here);
                    let mut shown = own.unwrap_or_else(|| unit.shown(follower.model.version));
                    (shown.here, shown.parked) = (here, unit.parked);
                    ((unit.generation, unit.partition), shown)
                })
                .collect();
            follower.seat.set(known);
        }
    }

    fn show_trouble(&self, error: &str) {
        for follower in self.followers.iter() {
            follower.seat.trouble(error);
        }
    }

    async fn release(&self, keys: &[Key]) -> Result<(), StoreError> {
        let releasing = self
            .store
            .inner
            .sql
            .release_units
            .query()
            .bind(self.process)
            .bind(keys.iter().map(|key| self.followers[key.0].model.name).collect::<Vec<_>>())
            .bind(keys.iter().map(|key| key.1).collect::<Vec<_>>())
            .bind(keys.iter().map(|key| key.2).collect::<Vec<_>>());
        self.store.inner.reads.execute("give up what this process ran", releasing).await.map(drop)
    }

    /// Processes of this machine that ended without saying so need not be waited for.
    async fn bury_neighbours(&self) -> Result<(), StoreError> {
        let listing = self.store.inner.sql.list_neighbours.query().bind(&self.host);
        let rows = self.store.inner.reads.all("look for processes that ended", listing).await?;
        let gone = rows.iter().filter(|row| row.get(2) || !is_running(row.get(1)));
        let gone: Vec<Uuid> = gone.map(|row| row.get(0)).filter(|process| *process != self.process).collect();
        for process in &gone {
            self.end_batches_of(*process).await;
        }
        if gone.is_empty() {
            return Ok(());
        }
        self.bury(&gone).await?;
        self.changed.notify_one();
        Ok(())
    }

    async fn bury(&self, processes: &[Uuid]) -> Result<(), StoreError> {
        let leaving = self.store.inner.sql.leave.query().bind(processes);
        self.store.inner.reads.execute("leave the processes", leaving).await.map(drop)
    }

    /// Stops everything and gives it up at once.
    async fn leave(mut self) {
        let running: Vec<_> = self.running.drain().map(|(_, running)| running).collect();
        for running in &running {
            running.stop.cancel();
        }
        for mut running in running {
            if timeout(self.store.config().drain_deadline, &mut running.task).await.is_err() {
                tracing::warn!(follower = running.unit.name, "a follower did not end within the drain deadline");
                running.task.abort();
            }
        }
        for follower in self.followers.iter() {
            follower.seat.stop();
        }
        if let Err(error) = self.bury(&[self.process]).await {
            tracing::debug!(%error, "what this process ran could not be given up; it is taken when the lease ends");
            return;
        }
        wake_up::tell(&self.store, &wake_up::control(&self.store)).await;
    }
}

/// Lets the runtime look around now and then, from outside. A handler that never waits keeps the thread it runs on, and if
/// that one was watching clocks and sockets for all, nobody does until something wakes another.
fn kick(stop: CancellationToken) {
    let runtime = tokio::runtime::Handle::current();
    let kicking = std::thread::Builder::new().name("annals-kick".into()).spawn(move || {
        while !stop.is_cancelled() {
            std::thread::sleep(BEAT / 2);
            runtime.spawn(async {});
        }
    });
    if let Err(error) = kicking {
        tracing::warn!(%error, "no thread to look after hung handlers");
    }
}

/// Asks the store often how far followers are that run elsewhere, as long as somebody waits for them.
async fn observe(store: Annals, followers: Arc<Vec<Registered>>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        sleep(OBSERVE).await;
        let awaited = followers.iter().filter(|follower| follower.seat.is_awaited());
        let names: Vec<&str> = awaited.map(|follower| follower.model.name).collect();
        if names.is_empty() {
            continue;
        }
        let reading = store.inner.sql.read_positions.query().bind(names);
        let Ok(rows) = store.inner.reads.all("read positions", reading).await else { continue };
        for row in rows {
            let (name, generation, partition): (&str, i64, i32) = (row.get(0), row.get(1), row.get(2));
            let Some(follower) = followers.iter().find(|follower| follower.model.name == name) else { continue };
            if follower.seat.get(generation, partition).is_some_and(|shown| !shown.here) {
                follower.seat.move_to(generation, partition, Position::new(row.get(3)));
            }
        }
    }
}

/// What tells this machine from others, and its table of processes from that of a container on it.
fn host() -> String {
    let read = |path| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").map(|link| link.display().to_string()).unwrap_or_default();
    format!("{} {} {namespace}", read("/etc/hostname"), read("/proc/sys/kernel/random/boot_id"))
}

/// Whether a process of this machine is there. Where that cannot be known, it is: its lease decides.
fn is_running(pid: i32) -> bool {
    let processes = std::path::Path::new("/proc");
    !processes.join("self").exists() || processes.join(pid.to_string()).exists()
}
