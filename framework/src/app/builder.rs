//! What an app consists of, checked and set up before it runs.

use std::{
    any::TypeId,
    collections::HashMap,
    marker::PhantomData,
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

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
    reactor::{self, Reactor},
    saga::{self, Attention, Definition, Expectation, Expected, OnAttention, Runtime, Saga, SagaEvent, Typed},
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
pub(super) type Define = Box<dyn FnOnce(&Annals, &Arc<Contracts>, &Arc<Runtime>) -> Result<Model, InvalidInput> + Send>;

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
    pub(crate) fn has(&self, name: &str) -> bool {
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
    sagas: Vec<Arc<dyn Definition>>,
    /// (an aggregate, its type's name, and what sends it commands).
    commanded: Vec<(TypeId, &'static str, String)>,
    aggregates: Vec<TypeId>,
    on_attention: Option<OnAttention>,
    dies_at: Option<usize>,
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
            sagas: vec![],
            commanded: vec![],
            aggregates: vec![],
            on_attention: None,
            dies_at: None,
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
        self.aggregates.push(TypeId::of::<A>());
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
        self.followers.push((V::NAME, Box::new(|store, contracts, _| view::model::<V>(store, contracts))));
        self
    }

    /// Lets `projector` follow the log.
    pub fn projector<P: Projector>(mut self, projector: P) -> Self {
        self.readers.push(Box::new(|contracts| contracts.check_reader::<P::Event>(P::SKIPS)));
        let define: Define = Box::new(move |store, contracts, _| projector::model(projector, store, contracts));
        self.followers.push((P::NAME, define));
        self
    }

    /// Lets `saga` run. Another version of it, under the same name, may be registered beside it: new instances begin under the
    /// newest, and each ends under the one that it began with.
    pub fn saga<S: Saga>(mut self, saga: S) -> Self {
        let typed = Typed::new(saga);
        let again = self.sagas.iter().find(|it| it.name() == S::NAME);
        if let Some(refusal) = typed.steps().refusal() {
            self.error.get_or_insert(InvalidInput::Other(refusal).into());
        }
        if again.is_none()
            && let Err(error) = self.contracts.register_own::<SagaEvent>(&format!("${}", S::NAME))
        {
            self.error.get_or_insert(error.into());
        }
        if self.sagas.iter().any(|it| (it.name(), it.version()) == (S::NAME, S::VERSION)) {
            let error = format!("version {} of saga {} is registered twice: raise one", S::VERSION, S::NAME);
            self.error.get_or_insert(InvalidInput::Other(error).into());
        }
        let commands = typed.steps().aggregates.iter();
        self.commanded
            .extend(commands.map(|(id, name, step)| (*id, *name, format!("step {step} of saga {}", S::NAME))));
        self.readers.push(Box::new(|contracts| contracts.check_reader::<S::Event>(&[])));
        let newest = self.sagas.iter().filter(|it| it.name() == S::NAME).all(|it| it.version() < S::VERSION);
        self.sagas.push(Arc::new(typed));
        if newest {
            self.followers.retain(|(name, _)| {
                *name != S::NAME || !self.sagas[..self.sagas.len() - 1].iter().any(|it| it.name() == *name)
            });
            self.followers.push((S::NAME, Box::new(saga::model::<S>)));
        }
        self
    }

    /// Lets `E` watch that what begins also ends.
    pub fn expectation<E: Expectation>(self) -> Self {
        self.saga(Expected::<E>(PhantomData))
    }

    /// Lets `reactor` follow the log.
    pub fn reactor<R: Reactor>(mut self, reactor: R) -> Self {
        self.readers.push(Box::new(|contracts| contracts.check_reader::<R::Event>(R::SKIPS)));
        let define: Define =
            Box::new(move |store, contracts, runtime| reactor::model(reactor, store, contracts, runtime));
        self.followers.push((R::NAME, define));
        self
    }

    /// Has `tell` called for each instance that is stuck and each expectation that is missed, once, in whichever process sees it
    /// first; again only if that process ends before it is noted. It is to be quick: what takes long it leaves to a task of its own.
    pub fn on_attention(mut self, tell: impl Fn(Attention) + Send + Sync + 'static) -> Self {
        self.on_attention = Some(Arc::new(tell));
        self
    }

    /// For tests: at this write of a saga, counted before and after each, the app is as good as dead.
    #[cfg(all(unix, feature = "testing"))]
    pub(crate) fn dies_at(mut self, write: usize) -> Self {
        self.dies_at = Some(write);
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
        let (stop, process) = (CancellationToken::new(), Uuid::now_v7());
        let follow = this.follow.clone();
        let runtime = Runtime::new(
            store.clone(),
            process,
            this.sagas,
            follow,
            this.on_attention,
            this.dies_at,
            stop.child_token(),
        );
        let models = this.followers.into_iter().map(|(_, define)| define(&store, &contracts, &runtime));
        let models: Vec<Model> = models.collect::<Result<_, InvalidInput>>()?;
        runtime.add_targets()?;
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
        // Also where nothing follows: other processes do.
        tokio::spawn(send_wake_ups(store.clone(), stop.clone()));
        let registered = models.into_iter().map(|model| Registered {
            seat: Arc::new(Seat::new(model.name)),
            runs: this.follow.has(model.name),
            model,
        });
        let followers: Arc<Vec<Registered>> = Arc::new(registered.collect());
        let changed = Arc::new(Notify::new());
        let inner = Arc::new(Inner {
            store,
            repositories,
            views: this.views,
            contracts,
            followers,
            coordinator: Mutex::new(None),
            sagas: runtime,
            commands: TaskTracker::new(),
            stop,
        });
        let app = App { inner };
        // What follows may lead to commands: it needs the whole app.
        app.inner.sagas.start(app.inner.contracts.clone(), app.downgrade()).await?;
        if !app.inner.followers.is_empty() {
            let inner = &app.inner;
            let followers = inner.followers.clone();
            let started = Coordinator::start(inner.store.clone(), process, followers, changed, inner.stop.clone());
            *app.lock_coordinator() = Some(started);
        }
        Ok(app)
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
                return Err(InvalidInput::Other(format!("two followers are called {name:?}: rename one")).into());
            }
        }
        for (id, aggregate, whose) in &self.commanded {
            if !self.aggregates.contains(id) {
                return Err(InvalidInput::Other(format!(
                    "{whose} commands aggregate {aggregate:?}, which is not registered: add .aggregate::<…>() to the app"
                ))
                .into());
            }
        }
        Ok(self)
    }
}
