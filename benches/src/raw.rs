//! The driver without the library: what nothing on top of it can be faster than.

use fred::prelude::{Builder, Client, ClientLike as _, Config, LuaInterface as _, Value};

/// A connected client of the bare driver.
///
/// # Panics
/// When the server cannot be reached.
pub async fn connect(url: &str) -> Client {
    let config = Config::from_url(url).expect("a URL that the driver knows");
    let client = Builder::from_config(config).build().expect("a client");
    client.init().await.expect("a server");
    client
}

/// Two scripts with the commands of an uncontended lock and release, and nothing else in them.
#[derive(Debug)]
pub struct Scripts {
    client: Client,
    acquire: String,
    release: String,
    keys: [String; 4],
    acquire_args: [String; 3],
}

const ACQUIRE: &str = "local c = redis.call
c('TIME') c('EXISTS', KEYS[1], KEYS[3]) c('GET', KEYS[2])
c('SET', KEYS[2], ARGV[1], 'PX', 3630000)
c('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1";

const RELEASE: &str = "local c = redis.call
c('GET', KEYS[1]) c('EXISTS', KEYS[3]) c('DEL', KEYS[1])
return 1";

impl Scripts {
    /// Loads both.
    ///
    /// # Panics
    /// When the server refuses them.
    pub async fn load(client: Client, key: &str) -> Self {
        let acquire = client.script_load(ACQUIRE).await.expect("a script");
        let release = client.script_load(RELEASE).await.expect("a script");
        let keys = [
            key.into(),
            format!("floor:f:{{{key}}}"),
            format!("floor:q:{{{key}}}"),
            format!("floor:h:{{{key}}}"),
        ];
        let value = format!(
            "dl1:{:032x}:{:032x}:{}:{}:30000:",
            1, 2, 1_790_000_000_000_000_u64, 1_790_000_000_000_000_u64
        );
        Self {
            client,
            acquire,
            release,
            keys,
            acquire_args: ["1790000000000000".into(), value, "30000".into()],
        }
    }

    /// One cycle: takes and gives back, two round trips.
    ///
    /// # Panics
    /// When the server fails.
    pub async fn cycle(&self) {
        self.acquire().await;
        self.release().await;
    }

    /// Takes.
    ///
    /// # Panics
    /// When the server fails.
    pub async fn acquire(&self) {
        let (keys, args) = (self.keys.to_vec(), self.acquire_args.to_vec());
        let answer = self.client.evalsha::<Value, _, _, _>(self.acquire.as_str(), keys, args);
        answer.await.expect("an answer");
    }

    /// Gives back.
    ///
    /// # Panics
    /// When the server fails.
    pub async fn release(&self) {
        let (keys, args) = (self.keys.to_vec(), Vec::<String>::new());
        let answer = self.client.evalsha::<Value, _, _, _>(self.release.as_str(), keys, args);
        answer.await.expect("an answer");
    }

    /// Closes the connection.
    pub async fn close(&self) {
        let _ = self.client.quit().await;
    }
}
