//! What an app consists of, checked and set up before it runs.

use std::{
    any::TypeId,
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{App, Inner, Kept};
use crate::{
    Aggregate, ContractError, InvalidInput, Projector, View,
    error::StoreError,
    event::contract::Contracts,
    execute::Repository,
    projector::{self, ProjectorFollower},
    store::Annals,
    subscription::{Handle, ReadModel, Tail, send_wake_ups},
    view::{self, ViewFollower, ViewSql},
};

/// Why an app did not start. Nothing runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The events of an aggregate or of a read model cannot be stored or read.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// A name or a setting is refused.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

type Make = Box<dyn FnOnce(&Annals, &Arc<Contracts>) -> (TypeId, Box<dyn Kept>) + Send>;
type Check = fn(&Contracts) -> Result<(), ContractError>;
type Start = Box<dyn FnOnce(Annals, Arc<Contracts>) -> Result<Starting, InvalidInput> + Send>;
type Run = Box<dyn FnOnce(Annals, &Tail, CancellationToken) -> Handle + Send>;

/// A read model before it runs.
struct Starting {
    model: ReadModel,
    run: Run,
}

/// Collects what an app consists of.
#[must_use = "an app runs once it is started"]
pub struct Builder {
    store: Annals,
    contracts: Contracts,
    repositories: Vec<Make>,
    readers: Vec<Check>,
    views: HashMap<TypeId, ViewSql>,
    followers: Vec<(&'static str, Start)>,
    error: Option<StartError>,
}

impl Annals {
    /// Begins an app on this store.
    pub fn app(&self) -> Builder {
        Builder {
            store: self.clone(),
            contracts: Contracts::default(),
            repositories: vec![],
            readers: vec![],
            views: HashMap::new(),
            followers: vec![],
            error: None,
        }
    }
}

impl Builder {
    /// Lets the app take commands for `A`, and its read models read its events.
    pub fn aggregate<A: Aggregate>(mut self) -> Self {
        if let Err(error) = self.contracts.register::<A::Event>(A::TYPE) {
            self.error.get_or_insert(error.into());
        }
        self.repositories.push(Box::new(|store, contracts| {
            (TypeId::of::<A>(), Box::new(Repository::<A>::new(store.clone(), contracts.clone())))
        }));
        self
    }

    /// Lets `V` follow the log.
    pub fn view<V: View>(mut self) -> Self {
        self.readers.push(Contracts::check_reader::<V::Event>);
        // A name that is refused is refused at the start.
        if let Ok(sql) = ViewSql::new::<V>(&self.store.inner.name) {
            self.views.insert(TypeId::of::<V>(), sql);
        }
        self.followers.push((
            V::NAME,
            Box::new(|store, contracts| {
                let model = view::read_model::<V>(&store.inner.name, &contracts)?;
                let follower = ViewFollower::<V>::new(&store, contracts)?;
                let run: Run = Box::new(move |store, tail, stop| Handle::start(follower, store, tail, stop));
                Ok(Starting { model, run })
            }),
        ));
        self
    }

    /// Lets `projector` follow the log.
    pub fn projector<P: Projector>(mut self, projector: P) -> Self {
        self.readers.push(Contracts::check_reader::<P::Event>);
        self.followers.push((
            P::NAME,
            Box::new(|store, contracts| {
                let model = projector::read_model::<P>(&store.inner.name, &contracts)?;
                let follower = ProjectorFollower::new(projector, &store, contracts)?;
                let run: Run = Box::new(move |store, tail, stop| Handle::start(follower, store, tail, stop));
                Ok(Starting { model, run })
            }),
        ));
        self
    }

    /// Checks every contract, sets up the read models, and starts to follow.
    ///
    /// # Errors
    /// [`StartError`] says what does not fit together; nothing runs then.
    pub async fn start(self) -> Result<App, StartError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        for check in &self.readers {
            check(&self.contracts)?;
        }
        for (nth, (name, _)) in self.followers.iter().enumerate() {
            if self.followers[..nth].iter().any(|(other, _)| other == name) {
                return Err(InvalidInput::Other(format!("two read models are called {name:?}: rename one")).into());
            }
        }
        let (store, contracts) = (self.store, Arc::new(self.contracts));
        let repositories = self.repositories.into_iter().map(|make| make(&store, &contracts)).collect();
        let starting =
            self.followers.into_iter().map(|(name, start)| Ok((name, start(store.clone(), contracts.clone())?)));
        let starting: Vec<_> = starting.collect::<Result<_, InvalidInput>>()?;
        let mut runs = vec![];
        for (name, Starting { model, run }) in starting {
            model.set_up(&store).await?;
            runs.push((name, run));
        }
        let stop = CancellationToken::new();
        // Also where nothing follows: other processes do.
        tokio::spawn(send_wake_ups(store.clone(), stop.clone()));
        let tail = (!runs.is_empty()).then(|| Tail::start(store.clone(), stop.clone()));
        let mut followers = vec![];
        if let Some(tail) = &tail {
            followers.extend(runs.into_iter().map(|(name, run)| (name, run(store.clone(), tail, stop.clone()))));
        }
        let inner = Inner {
            store,
            repositories,
            views: self.views,
            contracts,
            followers: Mutex::new(followers),
            commands: TaskTracker::new(),
            stop,
        };
        Ok(App { inner: Arc::new(inner) })
    }
}
