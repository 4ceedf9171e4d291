//! URLs of Redis deployments.

use std::time::Duration;

use distlock_core::BackendError;

use crate::{
    RedisConfig,
    backend::NAME,
    link::{Endpoint, Topology},
};

const OPTIONS: &str = "`timeout`, `connect_timeout`, `ca`, `user`, `password`, `db`, `master`, `sentinel_user`, `sentinel_password`";

/// What kind of deployment a scheme stands for.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Cluster,
    Sentinel,
    Standalone,
    Unix,
}

/// Reads a URL. What it says of it in errors never has a part in it that may be of a password.
pub(crate) fn parse(url: &str) -> Result<RedisConfig, BackendError> {
    let (scheme, rest) = url.split_once("://").ok_or_else(|| {
        wrong("the URL has no scheme: it begins with `redis://` or one of the others")
    })?;
    let (kind, tls) = match scheme {
        "redis" => (Kind::Standalone, false),
        "rediss" => (Kind::Standalone, true),
        "redis-cluster" => (Kind::Cluster, false),
        "rediss-cluster" => (Kind::Cluster, true),
        "redis-sentinel" => (Kind::Sentinel, false),
        "rediss-sentinel" => (Kind::Sentinel, true),
        "redis+unix" | "unix" => (Kind::Unix, false),
        _ => {
            return Err(wrong(
                "the URL's scheme is none of `redis`, `rediss`, `redis-cluster`, `rediss-cluster`, `redis-sentinel`, `rediss-sentinel`, `redis+unix`, `unix`",
            ));
        }
    };
    if tls && !cfg!(feature = "tls") {
        return Err(wrong("`rediss` needs the feature `tls` of `distlock-redis`"));
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    if path.contains('@') || query.contains('@') {
        // The login ends at the first `/` or `?`: the rest of a password may be in what is not the login.
        return Err(wrong(
            "there is an `@` behind the hosts: in a user or password, write `/`, `?`, `#`, `@` and `%` as `%2F`, `%3F`, `%23`, `%40` and `%25`",
        ));
    }
    let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let topology = match kind {
        Kind::Cluster => Topology::Cluster { seeds: endpoints(hosts, 6379)? },
        Kind::Sentinel => Topology::Sentinel {
            sentinels: endpoints(hosts, 26379)?,
            master: String::new(),
            username: None,
            password: None,
        },
        Kind::Standalone => match &endpoints(hosts, 6379)?[..] {
            [endpoint] => Topology::Standalone(endpoint.clone()),
            _ => return Err(wrong("several hosts need `redis-cluster://` or `redis-sentinel://`")),
        },
        Kind::Unix if hosts.is_empty() && path.len() > 1 => Topology::Unix(decode(path)?.into()),
        Kind::Unix => return Err(wrong("a socket is given as `redis+unix:///path/of/socket`")),
    };
    let mut config = RedisConfig::with(topology);
    config.tls = tls;
    let (user, password) = login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)));
    config.user = Some(decode(user)?).filter(|user| !user.is_empty());
    config.password = password.map(decode).transpose()?;
    if kind != Kind::Unix && path.len() > 1 {
        config.database = Some(database(&path[1..])?);
    }
    for option in query.split('&').filter(|option| !option.is_empty()) {
        set(&mut config, option)?;
    }
    check(config)
}

fn set(config: &mut RedisConfig, option: &str) -> Result<(), BackendError> {
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
    let value = decode(value)?;
    match (name, &mut config.topology) {
        ("timeout", _) => {
            *config = config.clone().request_timeout(duration("timeout", &value)?);
        }
        ("connect_timeout", _) => {
            *config = config.clone().connect_timeout(duration("connect_timeout", &value)?);
        }
        ("ca", _) if config.tls => config.ca_file = Some(value.into()),
        ("ca", _) => return Err(wrong("the option `ca` needs `rediss`")),
        ("user", _) => config.user = Some(value),
        ("password", _) => config.password = Some(value),
        ("db", _) => config.database = Some(database(&value)?),
        ("master", Topology::Sentinel { master, .. }) => *master = value,
        ("sentinel_user", Topology::Sentinel { username, .. }) => *username = Some(value),
        ("sentinel_password", Topology::Sentinel { password, .. }) => *password = Some(value),
        ("master" | "sentinel_user" | "sentinel_password", _) => {
            return Err(wrong("`master` and the `sentinel_` options need `redis-sentinel://`"));
        }
        _ => return Err(wrong(format!("the URL has an option that is none of {OPTIONS}"))),
    }
    Ok(())
}

fn check(config: RedisConfig) -> Result<RedisConfig, BackendError> {
    match &config.topology {
        Topology::Sentinel { master, .. } if master.is_empty() => Err(wrong(
            "the option `master` is missing: the name by which the sentinels know the primary",
        )),
        Topology::Cluster { .. } if config.database.is_some_and(|database| database != 0) => {
            Err(wrong("a cluster has only the database 0"))
        }
        _ => Ok(config),
    }
}

fn endpoints(hosts: &str, port: u16) -> Result<Vec<Endpoint>, BackendError> {
    hosts.split(',').map(|host| endpoint(host, port)).collect()
}

fn endpoint(text: &str, default: u16) -> Result<Endpoint, BackendError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) =
                rest.split_once(']').ok_or_else(|| wrong("an IPv6 address has no closing `]`"))?;
            match (port, port.strip_prefix(':')) {
                ("", _) => (host, None),
                (_, Some(port)) => (host, Some(port)),
                _ => {
                    return Err(wrong(
                        "behind the `]` of an IPv6 address only `:` and a port may be",
                    ));
                }
            }
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err(wrong("the URL names no host"));
    }
    let port = match port {
        None => default,
        Some(port) => port
            .parse()
            .ok()
            .filter(|&port| port != 0)
            .ok_or_else(|| wrong("a port is not a number from 1 to 65535"))?,
    };
    Ok(Endpoint::new(host, port))
}

fn database(text: &str) -> Result<u8, BackendError> {
    text.parse().map_err(|_| wrong("the database is not a number from 0 to 255"))
}

fn duration(name: &str, text: &str) -> Result<Duration, BackendError> {
    let (digits, unit) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 1),
        None => (text.strip_suffix('s').unwrap_or(""), 1000),
    };
    match digits.parse::<u32>() {
        Ok(number) if number > 0 => Ok(Duration::from_millis(u64::from(number) * unit)),
        _ => Err(wrong(format!("the option `{name}` is not a time such as `500ms` or `2s`"))),
    }
}

fn decode(text: &str) -> Result<String, BackendError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let digits = tail.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or_else(|| wrong("a `%` is not followed by two hex digits"))?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| wrong("what is written with `%` is not UTF-8"))
}

fn wrong(problem: impl Into<std::borrow::Cow<'static, str>>) -> BackendError {
    BackendError::permanent(NAME, problem)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn urls_say_where() {
        let one = |host: &str, port| Topology::Standalone(Endpoint::new(host, port));
        let (a, b) = (Endpoint::new("a", 1), Endpoint::new("b", 6379));
        for (url, topology) in [
            ("redis://localhost", one("localhost", 6379)),
            ("redis://[::1]:7000/", one("::1", 7000)),
            ("redis-cluster://a:1,b", Topology::Cluster { seeds: vec![a, b] }),
            ("redis+unix:///run/redis%20x.sock", Topology::Unix("/run/redis x.sock".into())),
            ("unix:///run/redis.sock?db=3", Topology::Unix("/run/redis.sock".into())),
            (
                "redis-sentinel://a/?master=main&sentinel_user=u&sentinel_password=p",
                Topology::Sentinel {
                    sentinels: vec![Endpoint::new("a", 26379)],
                    master: "main".into(),
                    username: Some("u".into()),
                    password: Some("p".into()),
                },
            ),
        ] {
            assert_eq!(parse(url).unwrap().topology, topology, "{url}");
        }
    }

    #[test]
    fn urls_say_who_and_how() {
        let config = parse("redis://us%40er:p:%2Fw@h/5?timeout=250ms&connect_timeout=3s").unwrap();
        assert_eq!(config.user.as_deref(), Some("us@er"));
        assert_eq!(config.password.as_deref(), Some("p:/w"));
        assert_eq!(config.database, Some(5));
        assert_eq!(config.request_timeout, Duration::from_millis(250));
        assert_eq!(config.connect_timeout, Duration::from_secs(3));
        let config = parse("redis://:p@h").unwrap();
        assert_eq!((config.user, config.password.as_deref()), (None, Some("p")));
        let config = parse("unix:///s?user=u&password=p%26").unwrap();
        assert_eq!((config.user.as_deref(), config.password.as_deref()), (Some("u"), Some("p&")));
    }

    #[cfg(feature = "tls")]
    #[test]
    fn rediss_is_encrypted() {
        let config = parse("rediss://h?ca=/etc/ca.pem").unwrap();
        assert!(config.tls);
        assert_eq!(config.ca_file, Some("/etc/ca.pem".into()));
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn rediss_names_the_feature_that_it_needs() {
        assert!(parse("rediss://h").unwrap_err().to_string().contains("`tls`"));
    }

    #[test]
    fn errors_name_the_problem_and_never_the_password() {
        for (url, word) in [
            ("hunter2@h", "no scheme"),
            ("hunter2://h", "scheme"),
            ("redis://", "no host"),
            ("redis://:hunter2@", "no host"),
            ("redis://:hunter2@h:port", "port"),
            ("redis://:hunter2@h:0", "port"),
            ("redis://:hunt/er2@h", "%2F"),
            ("redis://:hunt?er2@h", "%2F"),
            ("redis://:hunter2%zz@h", "hex digits"),
            ("redis://:hunter2%ff@h", "UTF-8"),
            ("redis://:hunter2@h/x", "database"),
            ("redis://:hunter2@a,b", "redis-cluster"),
            ("redis://:hunter2@h?hunter2=1", "`connect_timeout`"),
            ("redis://:hunter2@h?timeout=hunter2", "`timeout`"),
            ("redis://:hunter2@h?timeout=0s", "`timeout`"),
            ("redis://:hunter2@h?ca=x", "`rediss`"),
            ("redis://:hunter2@h?master=x", "redis-sentinel"),
            ("redis-sentinel://:hunter2@h", "`master`"),
            ("redis-cluster://:hunter2@h/1", "database 0"),
            ("redis://:hunter2@[::1", "`]`"),
            ("redis://:hunter2@[::1]7000", "`]`"),
            ("unix://hunter2", "socket"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(!error.is_transient());
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(word), "{url}: {shown}");
            assert!(!shown.contains("hunt") && !shown.contains("er2"), "{shown}");
        }
    }

    #[test]
    fn debug_hides_passwords() {
        for url in [
            "redis-sentinel://u:hunter2@h?master=m&sentinel_password=hunter2",
            // The slip of giving it as a user.
            "redis://hunter2@h",
        ] {
            let config = parse(url).unwrap();
            let shown = format!("{config:?} {config:#?}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    /// A URL as it is meant to be, and what it says, written by hand.
    #[derive(Clone, Debug)]
    struct Valid {
        user: String,
        password: String,
        hosts: Vec<(String, u16)>,
        database: u8,
        timeout: u32,
    }

    fn valid() -> impl Strategy<Value = Valid> {
        let word = "\\PC{0,12}|[%@:/?#&=+ ,\\[\\]\\x00\\r\\n]{0,8}";
        let host = ("[a-z0-9.-]{1,12}", 1..=u16::MAX);
        let hosts = prop::collection::vec(host, 1..4);
        (word, word, hosts, any::<u8>(), 1..=u32::MAX).prop_map(
            |(user, password, hosts, database, timeout)| Valid {
                user,
                password,
                hosts,
                database,
                timeout,
            },
        )
    }

    /// Writes every byte with `%`, so that nothing is left to chance.
    fn encode(text: &str) -> String {
        text.bytes().map(|byte| format!("%{byte:02X}")).collect()
    }

    impl Valid {
        fn url(&self, scheme: &str) -> String {
            let (user, password) = (encode(&self.user), encode(&self.password));
            let hosts: Vec<_> =
                self.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
            let (hosts, database, timeout) = (hosts.join(","), self.database, self.timeout);
            format!("{scheme}://{user}:{password}@{hosts}/{database}?timeout={timeout}ms&master=m")
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn no_url_whatsoever_makes_us_panic(
            url in "(redis(s|-cluster|-sentinel|\\+unix)?://)?[%@:/?&=,\\[\\]a-f0-9é]{0,24}",
            any in "\\PC{0,40}",
        ) {
            let _ = (parse(&url), parse(&any), parse(&format!("redis://{any}")));
        }

        #[test]
        fn what_a_url_says_is_what_is_configured(valid in valid()) {
            let config = parse(&valid.url("redis-sentinel")).unwrap();
            let user = Some(valid.user.clone()).filter(|user| !user.is_empty());
            prop_assert_eq!(&config.user, &user);
            prop_assert_eq!(config.password.as_deref(), Some(&*valid.password));
            prop_assert_eq!(config.database, Some(valid.database));
            let asked = Duration::from_millis(valid.timeout.into());
            prop_assert_eq!(config.request_timeout, asked.min(Duration::from_secs(86_400)));
            let endpoint = |(host, port): &(String, u16)| Endpoint::new(host, *port);
            let hosts: Vec<_> = valid.hosts.iter().map(endpoint).collect();
            let Topology::Sentinel { sentinels, .. } = config.topology else { panic!() };
            prop_assert_eq!(sentinels, hosts);
        }

        /// One wrong character in a URL with a password: read, or refused without a word of the password.
        #[test]
        fn a_damaged_url_is_refused_without_its_password(
            at in any::<prop::sample::Index>(), put in "[%@:/?#&=,\\[\\]\\x00 é]{0,2}", cut in 0_usize..3,
            tail in "(/[0-9a-z]{0,4})?(\\?[a-z_]{0,9}=?[a-z0-9]{0,5})?",
        ) {
            let url = format!("redis://someone:hunter2swordfish@host:6379{tail}");
            let at = at.index(url.len());
            let damaged: String = [&url[..at], &put, url.get(at + cut..).unwrap_or("")].concat();
            let shown = match parse(&damaged) {
                Ok(config) => format!("{config:?} {config:#?}"),
                Err(error) => format!("{error} {error:?} {error:#?}"),
            };
            let told = ["hunter", "swordf"].into_iter().find(|part| shown.contains(part));
            prop_assert_eq!(told, None, "{}: {}", damaged, shown);
        }
    }
}
