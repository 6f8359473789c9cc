//! What an app consists of, checked and set up before it runs.

use std::{
    any::TypeId,
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    App, Inner, Kept,
    replay::{self, MakeFold},
};
use crate::{
    Aggregate, ContractError, InvalidInput, Projector, View,
    error::StoreError,
    event::contract::Contracts,
    execute::Repository,
    projector,
    store::Annals,
    subscription::{Coordinator, Model, Registered, Seat, send_wake_ups},
    view::{self, ViewSql},
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
type Check = Box<dyn Fn(&Contracts) -> Result<(), ContractError> + Send>;
pub(super) type Define = Box<dyn FnOnce(&Annals, &Arc<Contracts>) -> Result<Model, InvalidInput> + Send>;

/// Which of its read models a process runs. What it does not run, others may; it can read and wait for it all the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Follow {
    /// All that it registers.
    #[default]
    All,
    /// None.
    Nothing,
    /// Those of these names.
    Only(Vec<String>),
}

impl Follow {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::Only(names) => names.iter().any(|own| own == name),
        }
    }
}

/// Collects what an app consists of.
#[must_use = "an app runs once it is started"]
pub struct Builder {
    pub(super) store: Annals,
    pub(super) contracts: Contracts,
    repositories: Vec<Make>,
    pub(super) folds: Vec<MakeFold>,
    readers: Vec<Check>,
    views: HashMap<TypeId, ViewSql>,
    pub(super) followers: Vec<(&'static str, Define)>,
    follow: Follow,
    error: Option<StartError>,
}

impl Annals {
    /// Begins an app on this store.
    pub fn app(&self) -> Builder {
        Builder {
            store: self.clone(),
            contracts: Contracts::default(),
            repositories: vec![],
            folds: vec![],
            readers: vec![],
            views: HashMap::new(),
            followers: vec![],
            follow: Follow::All,
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
        self.folds.push(Box::new(replay::fold::<A>));
        self
    }

    /// Lets `V` follow the log.
    pub fn view<V: View>(mut self) -> Self {
        self.readers.push(Box::new(|contracts| contracts.check_reader::<V::Event>(V::SKIPS)));
        // A name that is refused is refused at the start.
        if let Ok(sql) = ViewSql::new::<V>(&self.store.inner.name) {
            self.views.insert(TypeId::of::<V>(), sql);
        }
        self.followers.push((V::NAME, Box::new(view::model::<V>)));
        self
    }

    /// Lets `projector` follow the log.
    pub fn projector<P: Projector>(mut self, projector: P) -> Self {
        self.readers.push(Box::new(|contracts| contracts.check_reader::<P::Event>(P::SKIPS)));
        self.followers.push((P::NAME, Box::new(move |store, contracts| projector::model(projector, store, contracts))));
        self
    }

    /// Which of the read models this process runs: all of them unless told otherwise. Each partition is run by one process at a
    /// time, whichever of those that may has taken it.
    pub fn follow(mut self, follow: Follow) -> Self {
        self.follow = follow;
        self
    }

    /// Checks every contract, sets up the read models, and starts to follow.
    ///
    /// # Errors
    /// [`StartError`] says what does not fit together; nothing runs then.
    pub async fn start(self) -> Result<App, StartError> {
        let this = self.checked()?;
        let (store, contracts) = (this.store, Arc::new(this.contracts));
        let repositories = this.repositories.into_iter().map(|make| make(&store, &contracts)).collect();
        let models = this.followers.into_iter().map(|(_, define)| define(&store, &contracts));
        let models: Vec<Model> = models.collect::<Result<_, InvalidInput>>()?;
        let names: Vec<&'static str> = models.iter().map(|model| model.name).collect();
        if let Follow::Only(only) = &this.follow
            && let Some(unknown) = only.iter().find(|name| !names.contains(&name.as_str()))
        {
            return Err(
                InvalidInput::Other(format!("no read model {unknown:?} to follow is registered in this app")).into()
            );
        }
        for model in &models {
            model.set_up(&store, &names).await?;
        }
        let stop = CancellationToken::new();
        // Also where nothing follows: other processes do.
        tokio::spawn(send_wake_ups(store.clone(), stop.clone()));
        let registered = models.into_iter().map(|model| Registered {
            seat: Arc::new(Seat::new(model.name)),
            runs: this.follow.has(model.name),
            model,
        });
        let followers: Arc<Vec<Registered>> = Arc::new(registered.collect());
        let changed = Arc::new(Notify::new());
        let coordinator = (!followers.is_empty())
            .then(|| Coordinator::start(store.clone(), followers.clone(), changed.clone(), stop.clone()));
        let inner = Inner {
            store,
            repositories,
            views: this.views,
            contracts,
            followers,
            coordinator: Mutex::new(coordinator),
            commands: TaskTracker::new(),
            stop,
        };
        Ok(App { inner: Arc::new(inner) })
    }

    /// The same, if it fits together.
    pub(super) fn checked(mut self) -> Result<Self, StartError> {
        if let Some(error) = self.error.take() {
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
        Ok(self)
    }
}
