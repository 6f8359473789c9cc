//! A network between a store and its server that a test can break.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use annals::{Annals, Config, StoreError};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
};

/// What happens to a connection when the client has sent a certain message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Both ends see it closed, at once.
    Cut,
    /// Both ends see it closed when the server has answered. The answer is lost.
    CutAtAnswer,
    /// The client sees it closed, the server does not.
    Abandon,
    /// It stays open, and nothing comes through any more.
    Dark,
}

/// Forwards connections to a server. Gone with this value, connections and all.
pub(crate) struct Proxy {
    options: PgConnectOptions,
    state: Arc<State>,
    task: AbortHandle,
}

struct State {
    /// A fault for the connection that next sends this text.
    armed: Mutex<Option<(Fault, String)>>,
    /// A fault for every so many messages; 0 for none.
    every: AtomicUsize,
    messages: AtomicUsize,
    faults: AtomicUsize,
    cut: watch::Sender<()>,
}

impl Proxy {
    pub(crate) async fn to(options: PgConnectOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = options.clone().host("127.0.0.1").port(listener.local_addr().unwrap().port());
        let state = Arc::new(State {
            armed: Mutex::new(None),
            every: AtomicUsize::new(0),
            messages: AtomicUsize::new(0),
            faults: AtomicUsize::new(0),
            cut: watch::Sender::new(()),
        });
        let server = format!("{}:{}", options.get_host(), options.get_port());
        let task = tokio::spawn(accept(listener, server, state.clone())).abort_handle();
        Self { options: here, state, task }
    }

    /// A store that reaches its server through here.
    pub(crate) async fn store(&self, config: Config) -> Result<Annals, StoreError> {
        Annals::with_pool(PgPoolOptions::new().connect_lazy_with(self.options.clone()), config).await
    }

    /// Lets `fault` happen to the connection that next sends `text`.
    pub(crate) fn arm(&self, fault: Fault, text: &str) {
        *self.state.armed.lock().unwrap() = Some((fault, text.into()));
    }

    /// Cuts the connection that sends every `messages`th message from now on, by turns before and after the answer.
    pub(crate) fn cut_every(&self, messages: usize) {
        self.state.every.store(messages, Ordering::SeqCst);
    }

    /// Cuts every connection.
    pub(crate) fn cut_all(&self) {
        self.state.cut.send_replace(());
    }

    /// How often a fault has happened.
    pub(crate) fn faults(&self) -> usize {
        self.state.faults.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    /// What happens to the connection that has sent `message`.
    fn fault(&self, message: &[u8]) -> Option<Fault> {
        let nth = self.messages.fetch_add(1, Ordering::SeqCst);
        let every = self.every.load(Ordering::SeqCst);
        let mut armed = self.armed.lock().unwrap();
        let has = |text: &str| message.windows(text.len()).any(|part| part == text.as_bytes());
        let fault = if armed.as_ref().is_some_and(|(_, text)| has(text)) {
            armed.take().map(|(fault, _)| fault)
        } else if every > 0 && nth.is_multiple_of(every) {
            Some(if (nth / every).is_multiple_of(2) { Fault::Cut } else { Fault::CutAtAnswer })
        } else {
            None
        };
        self.faults.fetch_add(fault.is_some().into(), Ordering::SeqCst);
        fault
    }
}

async fn accept(listener: TcpListener, server: String, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (server, state) = (server.clone(), state.clone());
        connections.spawn(async move {
            if let Ok(server) = TcpStream::connect(server).await {
                // An end that closes ends the other: that is all there is to an error here.
                let _ = relay(client, server, &state).await;
            }
        });
    }
}

async fn relay(mut client: TcpStream, mut server: TcpStream, state: &State) -> std::io::Result<()> {
    let mut cut = state.cut.subscribe();
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut fault = None;
    loop {
        tokio::select! {
            biased;
            _ = cut.changed() => return Ok(()),
            sent = client.read(&mut up) => {
                let message = &up[..sent?];
                if message.is_empty() {
                    return Ok(());
                }
                server.write_all(message).await?;
                fault = fault.or(state.fault(message));
                match fault {
                    Some(Fault::Cut) => return Ok(()),
                    Some(Fault::Abandon) => {
                        drop(client);
                        return pending().await;
                    }
                    Some(Fault::Dark) => return pending().await,
                    Some(Fault::CutAtAnswer) | None => {}
                }
            }
            answered = server.read(&mut down) => {
                let answer = &down[..answered?];
                if answer.is_empty() || fault == Some(Fault::CutAtAnswer) {
                    return Ok(());
                }
                client.write_all(answer).await?;
            }
        }
    }
}
