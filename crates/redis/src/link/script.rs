//! Scripts and commands as they go to the driver.

use fred::{
    bytes::Bytes,
    types::{ClusterHash, CustomCommand, Value},
    util::{redis_keyslot, sha1_hash, static_str},
};

/// A Lua script and its digest.
#[derive(Debug)]
pub(crate) struct Script {
    source: Bytes,
    digest: Bytes,
}

/// A command's name and target, and its arguments.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) name: CustomCommand,
    pub(super) args: Vec<Value>,
}

impl Script {
    /// Computes the digest: keep the script, in a `LazyLock` for instance.
    pub(crate) fn new(source: impl Into<String>) -> Self {
        let source = source.into();
        Self { digest: sha1_hash(&source).into(), source: source.into() }
    }

    #[cfg(test)]
    pub(crate) const fn source(&self) -> &Bytes {
        &self.source
    }

    pub(super) fn evalsha(&self, keys: &[Bytes], args: &[Bytes], clustered: bool) -> Command {
        Command::script("EVALSHA", &self.digest, keys, args, clustered)
    }

    pub(super) fn eval(&self, keys: &[Bytes], args: &[Bytes], clustered: bool) -> Command {
        Command::script("EVAL", &self.source, keys, args, clustered)
    }
}

impl Command {
    /// A command without a key.
    pub(super) fn plain(name: &'static str, args: &[Bytes]) -> Self {
        Self {
            name: CustomCommand::new_static(name, ClusterHash::Random, false),
            args: args.iter().cloned().map(Value::Bytes).collect(),
        }
    }

    fn script(
        name: &'static str,
        script: &Bytes,
        keys: &[Bytes],
        args: &[Bytes],
        clustered: bool,
    ) -> Self {
        // `ClusterHash::FirstKey` would take the script for the key.
        let target = match keys.first() {
            Some(key) if clustered => ClusterHash::Custom(redis_keyslot(key)),
            _ => ClusterHash::Random,
        };
        let mut list = Vec::with_capacity(2 + keys.len() + args.len());
        list.push(Value::Bytes(script.clone()));
        list.push(count(keys.len()));
        list.extend(keys.iter().chain(args).cloned().map(Value::Bytes));
        Self { name: CustomCommand::new_static(name, target, false), args: list }
    }
}

/// The number of keys; the usual ones without an allocation.
fn count(keys: usize) -> Value {
    const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    match DIGITS.get(keys) {
        Some(digit) => Value::String(static_str(digit)),
        None => Value::String(keys.to_string().into()),
    }
}
