//! Sagas: how many end a second, how soon one begins, and what those cost that sleep.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, LazyLock, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use annals::{
    Aggregate, Annals, App, Begin, BoxError, Builder, By, Context, Event, ExpectedVersion, FollowerState, Id, NewEvent,
    Recorded, Saga, SagaCounts, StepError, Steps, StreamId, Target,
};
use futures::{StreamExt, stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::AbortHandle,
    time::{interval, sleep},
};

use crate::{
    measure::Figures,
    read::connect,
    server::{self, Server},
};

/// What a saga of four local steps goes through.
#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) enum JobEvent {
    Posted,
    Slept,
    Done { step: u32 },
}
impl Event for JobEvent {}

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Job {
    done: u32,
}

impl Aggregate for Job {
    const TYPE: &'static str = "job";
    type Command = u32;
    type Event = JobEvent;
    type Error = Infallible;

    fn handle(&self, step: &u32, _: &Context) -> Result<Vec<JobEvent>, Infallible> {
        Ok(vec![JobEvent::Done { step: *step }])
    }

    fn apply(&mut self, _: &JobEvent) {
        self.done += 1;
    }
}

/// Four commands, one after the other.
struct Work;

impl Saga for Work {
    const NAME: &'static str = "work";
    const BEGIN: Begin = Begin::Start;
    type Event = JobEvent;
    type Input = ();

    fn start(event: &Recorded<JobEvent>) -> Option<(Id, ())> {
        matches!(event.event, JobEvent::Posted).then(|| (event.stream.id().into(), ()))
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps
            .command::<Job>("one", |cx| Ok((cx.id.clone(), 1)))
            .command::<Job>("two", |cx| Ok((cx.id.clone(), 2)))
            .command::<Job>("three", |cx| Ok((cx.id.clone(), 3)))
            .command::<Job>("four", |cx| Ok((cx.id.clone(), 4)))
    }
}

/// Sleeps until next month.
struct Sleep;

impl Saga for Sleep {
    const NAME: &'static str = "sleep";
    const BEGIN: Begin = Begin::Start;
    type Event = JobEvent;
    type Input = ();

    fn start(event: &Recorded<JobEvent>) -> Option<(Id, ())> {
        matches!(event.event, JobEvent::Slept).then(|| (event.stream.id().into(), ()))
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps.sleep("sleep", Duration::from_secs(30 * 86_400)).step("wake", |_| async { Ok(()) })
    }
}

/// When each instance began its first step.
static BEGUN: LazyLock<Mutex<HashMap<String, Instant>>> = LazyLock::new(Mutex::default);

fn begun() -> std::sync::MutexGuard<'static, HashMap<String, Instant>> {
    BEGUN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says when it began.
struct Soon;

impl Saga for Soon {
    const NAME: &'static str = "soon";
    type Event = JobEvent;
    type Input = ();

    fn start(event: &Recorded<JobEvent>) -> Option<(Id, ())> {
        matches!(event.event, JobEvent::Posted).then(|| (event.stream.id().into(), ()))
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps
            .step("first", |cx| async move {
                begun().insert(cx.id.to_string(), Instant::now());
                Ok(())
            })
            .command::<Job>("second", |cx| Ok((cx.id.clone(), 2)))
    }
}

async fn post(annals: &Annals, id: &str, event: &JobEvent) -> Result<(), BoxError> {
    let events = vec![NewEvent::of(event)?];
    annals.append(&StreamId::of(Job::TYPE, id)?, ExpectedVersion::NoStream, events).await?;
    Ok(())
}

async fn post_all(annals: &Annals, name: &str, count: usize, event: &JobEvent) -> Result<(), BoxError> {
    let posting = (0..count).map(|nth| async move { post(annals, &format!("{name}{nth}"), event).await });
    let mut posting = stream::iter(posting).buffer_unordered(512);
    while let Some(posted) = posting.next().await {
        posted?;
    }
    Ok(())
}

/// Waits until a saga has seen the whole log, and none of its instances is under way. To count those that have ended would cost
/// the more, the more there are.
async fn ended(server: &Server, app: &App, saga: &str) -> Result<(), BoxError> {
    let mut conn = server.connect().await?;
    let open =
        "select exists (select from bench_sagas.sagas where saga = $1 and state not in ('completed', 'compensated'))";
    loop {
        let end = app.store().horizon().await?.safe;
        let seen = app.followers().iter().filter(|follower| follower.name == saga).all(|it| it.position >= end);
        if seen && !sqlx::query_scalar::<_, bool>(open).bind(saga).fetch_one(&mut conn).await? {
            return Ok(());
        }
        sleep(Duration::from_millis(20)).await;
    }
}

const STORE: &str = "bench_sagas";

/// Sagas of four local steps in so many processes, beside so many that sleep; the limit is the same commands without a saga, a
/// fourth of a command's rate.
pub(crate) async fn ended_a_second(
    server: &Server,
    processes: usize,
    sleeping: usize,
) -> Result<(Figures, Figures), BoxError> {
    const SAGAS: usize = 10_000;
    server.drop_store(STORE).await?;
    let annals = connect(server, STORE).await?;
    let mut memory = String::new();
    if sleeping > 0 {
        let without = resident(server).await?;
        post_all(&annals, "sleeping-", sleeping, &JobEvent::Slept).await?;
        let app = registered(&annals, true).start().await?;
        while app.sagas().summary().await?.get("sleep").is_none_or(|counts| (counts.running as usize) < sleeping) {
            sleep(Duration::from_millis(100)).await;
        }
        app.shutdown().await;
        let with = resident(server).await?;
        memory =
            format!("; a process beside {sleeping} that sleep has {with:.1} MB resident, and {without:.1} beside none");
    }
    let annals = connect(server, STORE).await?;
    let app = registered(&annals, sleeping > 0).start().await?;
    // To start processes is not what is measured: they are all there when the saga may begin.
    let (followers, by) = (annals.followers(), By::new("bench", "not yet"));
    followers.pause(Work::NAME, &by).await?;
    while !app.followers().iter().any(|it| it.name == Work::NAME && it.state == FollowerState::Paused) {
        sleep(Duration::from_millis(20)).await;
    }
    post_all(&annals, "", SAGAS, &JobEvent::Posted).await?;
    let mut others: Vec<Child> = (1..processes).map(|_| other(server, sleeping > 0)).collect::<Result<_, _>>()?;
    let mut conn = server.connect().await?;
    let alive =
        "select count(*) from bench_sagas.processes where alive_until > clock_timestamp() and 'work:1' = any (runs)";
    while sqlx::query_scalar::<_, i64>(alive).fetch_one(&mut conn).await? < processes as i64 {
        sleep(Duration::from_millis(20)).await;
    }
    server.settle().await?;
    server::forget_peak();
    if app.sagas().summary().await?.get(Work::NAME).is_some_and(|counts| *counts != SagaCounts::default()) {
        return Err("sagas began while they were paused".into());
    }
    let (transactions, begun) = (committed(server).await?, Instant::now());
    followers.resume(Work::NAME, &by).await?;
    ended(server, &app, Work::NAME).await?;
    let elapsed = begun.elapsed();
    let counts = app.sagas().summary().await?.remove(Work::NAME).unwrap_or_default();
    if counts.completed as usize != SAGAS {
        return Err(format!("of {SAGAS} sagas, these have ended: {counts:?}").into());
    }
    let transactions = (committed(server).await? - transactions) as f64 / SAGAS as f64;
    for other in &mut others {
        other.kill().await?;
    }
    let resident_mb = server::own_peak();
    let note = format!(
        "one saga is 10 events of its own and 4 of its aggregate in 5 appends; {transactions:.2} transactions each were committed, as \
         many appends share one{memory}"
    );
    let ours = Figures { resident_mb, note: Some(note), ..Figures::rate(SAGAS, elapsed) };

    let begun = Instant::now();
    let commands = (0..SAGAS).map(|nth| {
        let app = app.clone();
        async move {
            for step in 1..=4 {
                app.execute::<Job>(nth, step).await?;
            }
            Ok::<_, BoxError>(())
        }
    });
    let mut commands = stream::iter(commands).buffer_unordered(256);
    while let Some(done) = commands.next().await {
        done?;
    }
    let limit = Figures::rate(SAGAS, begun.elapsed());
    app.shutdown().await;
    server.drop_store(STORE).await?;
    Ok((ours, limit))
}

/// A target that listens, or does not.
const GATEWAY: Target = Target::new("gateway");
static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Calls somebody who may be away.
struct Calling;

impl Saga for Calling {
    const NAME: &'static str = "calling";
    const BEGIN: Begin = Begin::Start;
    type Event = JobEvent;
    type Input = ();

    fn start(event: &Recorded<JobEvent>) -> Option<(Id, ())> {
        Work::start(event)
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps
            .step("call", |_| async {
                CALLS.fetch_add(1, Ordering::Relaxed);
                let address = ADDRESS.get().ok_or_else(|| StepError::business("nobody ever listened"))?;
                let mut conn = TcpStream::connect(address).await.map_err(StepError::transient)?;
                let byte = conn.read_u8().await.map_err(StepError::unknown)?;
                Ok(byte)
            })
            .calls(GATEWAY)
            .end()
    }
}

/// Answers each connection with a byte until it is dropped.
async fn answer(address: SocketAddr) -> Result<AbortHandle, BoxError> {
    let listener = TcpListener::bind(address).await?;
    let _ = ADDRESS.set(listener.local_addr()?);
    let answering = tokio::spawn(async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            let _ = conn.write_all(b"1").await;
        }
    });
    Ok(answering.abort_handle())
}

/// 1,000 sagas under way when the one they call goes away for two minutes. Sagas a second once it is back.
pub(crate) async fn through_an_outage(server: &Server) -> Result<Figures, BoxError> {
    const SAGAS: usize = 1_000;
    const OUTAGE: Duration = Duration::from_secs(120);
    const MOST_CALLS: usize = 30;
    const SOON: Duration = Duration::from_secs(60);
    server.drop_store(STORE).await?;
    let annals = connect(server, STORE).await?;
    let listening = answer(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let app = annals.app().aggregate::<Job>().saga(Calling).start().await?;
    post(&annals, "first", &JobEvent::Posted).await?;
    ended(server, &app, Calling::NAME).await?;
    listening.abort();
    sleep(Duration::from_millis(200)).await;
    CALLS.store(0, Ordering::Relaxed);
    let begun = Instant::now();
    post_all(&annals, "", SAGAS, &JobEvent::Posted).await?;
    sleep(OUTAGE.saturating_sub(begun.elapsed())).await;
    let calls = CALLS.load(Ordering::Relaxed);
    let address = *ADDRESS.get().ok_or("nobody ever listened")?;
    let (_listening, back) = (answer(address).await?, Instant::now());
    ended(server, &app, Calling::NAME).await?;
    let elapsed = back.elapsed();
    let counts = app.sagas().summary().await?.remove(Calling::NAME).unwrap_or_default();
    app.shutdown().await;
    server.drop_store(STORE).await?;
    let note = format!(
        "{calls} calls in {} s of outage; all ended {:.1} s after it, {} of {} completed",
        OUTAGE.as_secs(),
        elapsed.as_secs_f64(),
        counts.completed,
        SAGAS + 1
    );
    // No matter of how fast the machine is.
    if calls > MOST_CALLS || elapsed > SOON || counts.completed != SAGAS as u64 + 1 {
        return Err(format!(
            "at most {MOST_CALLS} calls, and all done within {} s, are promised: {note}",
            SOON.as_secs()
        )
        .into());
    }
    Ok(Figures { note: Some(note), ..Figures::rate(SAGAS, elapsed) })
}

async fn committed(server: &Server) -> Result<i64, BoxError> {
    // What a session has done is counted a little later.
    sleep(Duration::from_millis(1_200)).await;
    let query = "select xact_commit from pg_stat_database where datname = current_database()";
    Ok(sqlx::query_scalar(query).fetch_one(&mut server.connect().await?).await?)
}

fn other(server: &Server, sleep: bool) -> Result<Child, BoxError> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("sagas-process").arg(server.url()).args(sleep.then_some("--sleep"));
    Ok(command.kill_on_drop(true).spawn()?)
}

/// Who follows something else reads the log once more: `sleep` is registered where it is measured.
fn registered(annals: &Annals, sleep: bool) -> Builder {
    let builder = annals.app().aggregate::<Job>().saga(Work);
    if sleep { builder.saga(Sleep) } else { builder }
}

/// What a process that runs sagas has resident once it has looked around, in MB.
async fn resident(server: &Server) -> Result<f64, BoxError> {
    const LOOKS_AROUND: Duration = Duration::from_secs(15);
    let mut process = other(server, true)?;
    sleep(LOOKS_AROUND).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id().unwrap_or_default()))?;
    process.kill().await?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes: Option<f64> = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    Ok(kilobytes.ok_or("the kernel does not say what a process has resident")? / 1_024.0)
}

/// One of several processes that run sagas, until it is killed.
pub(crate) async fn process(url: &str, sleep: bool) -> Result<(), BoxError> {
    let annals = Annals::connect(annals::Config { store: STORE.into(), ..server::config(url) }).await?;
    let _app = registered(&annals, sleep).start().await?;
    std::future::pending().await
}

/// From an event's acknowledgement to the beginning of the first step that it leads to, at 100 a second.
pub(crate) async fn begun_after(server: &Server, seconds: u64) -> Result<Figures, BoxError> {
    server.drop_store(STORE).await?;
    let annals = connect(server, STORE).await?;
    let app = annals.app().aggregate::<Job>().saga(Soon).start().await?;
    post(&annals, "warm", &JobEvent::Posted).await?;
    ended(server, &app, Soon::NAME).await?;
    let count = seconds.max(10) * 100;
    let acknowledged = Arc::new(Mutex::new(HashMap::new()));
    let (mut ticks, begun_at) = (interval(Duration::from_millis(10)), Instant::now());
    let mut posting = vec![];
    for nth in 0..count {
        ticks.tick().await;
        let (annals, acknowledged) = (annals.clone(), acknowledged.clone());
        posting.push(tokio::spawn(async move {
            let id = nth.to_string();
            post(&annals, &id, &JobEvent::Posted).await.map_err(|error| error.to_string())?;
            acknowledged.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Instant::now());
            Ok::<_, String>(())
        }));
    }
    for posted in posting {
        posted.await??;
    }
    let elapsed = begun_at.elapsed();
    ended(server, &app, Soon::NAME).await?;
    let (begun, acknowledged) = (begun().clone(), acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone());
    let latency =
        |(id, at): (&String, &Instant)| Some(begun.get(id)?.saturating_duration_since(*at).as_micros() as u64);
    let latencies: Vec<u64> = acknowledged.iter().filter_map(latency).collect();
    app.shutdown().await;
    server.drop_store(STORE).await?;
    Ok(Figures::of(latencies, 1, elapsed))
}
