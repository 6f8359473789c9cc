//! P4: a view or projector applies each event exactly once, and never stops in silence.

mod failing;
mod once;
mod projector;
mod setup;
mod views;
mod waking;

use annals::{App, Config, FollowerStatus, Position};

use crate::{
    kit::open_with,
    shop::{Journal, Order, Spend},
};

/// The shop, as a process of its own would run it.
async fn shop(url: &str, change: impl FnOnce(&mut Config)) -> App {
    let mut config = Config::new(url);
    change(&mut config);
    open_with(config).await.app().aggregate::<Order>().view::<Spend>().projector(Journal).start().await.unwrap()
}

fn status(app: &App, name: &str) -> FollowerStatus {
    app.followers().into_iter().find(|status| status.name == name).unwrap()
}

/// Where the checkpoint of `name` stands in the database.
async fn checkpoint(app: &App, name: &str) -> Position {
    let position = sqlx::query_scalar("select position from annals.checkpoints where follower = $1").bind(name);
    Position::new(position.fetch_one(app.store().pool()).await.unwrap())
}
