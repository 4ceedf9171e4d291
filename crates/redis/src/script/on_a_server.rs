//! Each script by itself on a real server: what it answers to what stands there, and what it leaves.

mod line;

use distlock_servers::{
    redis::RedisServer,
    resp::{Connection, Reply},
};

use super::{ACQUIRE, CHANGE, RELEASE};
use crate::link::Script;

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const C: &str = "cccccccccccccccccccccccccccccccc";
/// Processes.
const P: &str = "11111111111111111111111111111111";
const R: &str = "22222222222222222222222222222222";

const KEYS: [&str; 4] = ["lock", "fence", "line", "places"];
const IDLE: i64 = 3_600_000;
/// Above every clock, and exact.
const AHEAD: i64 = 4_000_000_000_000_000;
const EXACT: i64 = 1 << 53;

/// A server with the keys of one lock.
struct Lock {
    server: RedisServer,
    to: Connection,
    /// What the scripts take for the time, in microseconds, where a test wants to meet a moment.
    time: Option<i64>,
}

impl Lock {
    fn new() -> Self {
        let server = RedisServer::start(&[]).unwrap();
        let to = server.connection().unwrap();
        Self { server, to, time: None }
    }

    fn command(&mut self, words: &str) -> String {
        let words: Vec<&str> = words.split(' ').collect();
        self.to.command(&words).unwrap().to_string()
    }

    /// The answer, its elements with a space between them.
    fn try_eval(
        &mut self,
        script: &Script,
        keys: &[&str],
        args: &[&str],
    ) -> Result<String, String> {
        let mut source = str::from_utf8(script.source()).unwrap().to_owned();
        if let Some(time) = self.time {
            let (seconds, micros) = (time / 1_000_000, time % 1_000_000);
            source = source.replace("call('TIME')", &format!("{{'{seconds}', '{micros}'}}"));
        }
        let count = keys.len().to_string();
        let words = [&["EVAL", &source, &count], keys, args].concat();
        let answer = self.to.command(&words).map_err(|error| error.to_string())?;
        // A list of one is none of what a single lock is answered.
        let is_list = matches!(&answer, Reply::Array(answers) if answers.len() == 1);
        let text = answer.to_string().replace('\n', " ");
        Ok(if is_list { format!("[{text}]") } else { text })
    }

    fn eval(&mut self, script: &Script, args: &[&str]) -> String {
        self.try_eval(script, &KEYS, args).unwrap()
    }

    /// In microseconds.
    fn now(&mut self) -> i64 {
        if let Some(time) = self.time {
            return time;
        }
        let time = self.command("TIME");
        let (seconds, micros) = time.split_once('\n').unwrap();
        seconds.parse::<i64>().unwrap() * 1_000_000 + micros.parse::<i64>().unwrap()
    }

    fn acquire(
        &mut self,
        owner: &str,
        ttl: i64,
        tokens: i64,
        rest: &str,
    ) -> Result<String, String> {
        let (head, ttl, fence) =
            (format!("dl1:{owner}:{P}:"), ttl.to_string(), (ttl + IDLE).to_string());
        let (tokens, late) = (tokens.to_string(), (self.now() + 5_000_000).to_string());
        self.try_eval(&ACQUIRE, &KEYS, &[&head, &ttl, &fence, &tokens, &late, "w", rest])
    }

    fn release(&mut self, owner: &str, used: &str, rest: &str, long: &str) -> String {
        let head = format!("dl1:{owner}:{P}:");
        self.eval(&RELEASE, &[&head, used, rest, long, "1"])
    }

    /// Somebody has it, with tokens 50 to 59.
    fn held(&mut self, owner: &str, process: &str, ttl: i64) {
        self.command(&format!("SET lock dl1:{owner}:{process}:50:59:{ttl}:w PX {ttl}"));
    }

    /// Somebody waits, and is believed to live for so long.
    fn place(&mut self, owner: &str, arrival: i64, lives: i64, what: &str) {
        let until = self.now() / 1000 + lives;
        self.command(&format!("ZADD line {arrival} {owner}"));
        self.command(&format!("HSET places {owner} {until} {owner}i {what}"));
    }

    fn full(&mut self, full: bool) {
        self.command(&format!("CONFIG SET maxmemory {}", u8::from(full)));
    }

    fn get(&mut self, key: &str) -> String {
        self.command(&format!("GET {key}"))
    }

    fn line(&mut self) -> String {
        self.command("ZRANGE line 0 -1").replace('\n', " ")
    }

    /// Who has a field of its own among the places.
    fn places(&mut self) -> String {
        let mut fields: Vec<String> =
            self.command("HKEYS places").lines().map(str::to_owned).collect();
        fields.sort();
        fields.join(" ")
    }

    /// It lives for as long as that, save for what the test took.
    #[track_caller]
    fn lives(&mut self, key: &str, ms: i64) {
        let left: i64 = self.command(&format!("PTTL {key}")).parse().unwrap();
        assert!(ms - 20_000 < left && left <= ms, "{key} for {left} ms, not {ms}");
    }

    fn hear(&self, process: &str) -> Ears {
        let mut to = self.server.connection().unwrap();
        to.command(&["SUBSCRIBE", &format!("__distlock:c:{process}")]).unwrap();
        Ears { to, channel: format!("__distlock:c:{process}") }
    }
}

/// Who listens for one process.
struct Ears {
    to: Connection,
    channel: String,
}

impl Ears {
    /// All that was said by now.
    fn heard(&mut self, lock: &mut Lock) -> Vec<String> {
        lock.command(&format!("PUBLISH {} end", self.channel));
        let mut heard = Vec::new();
        loop {
            let message = self.to.read().unwrap().to_string();
            match message.lines().last().unwrap() {
                "end" => return heard,
                text => heard.push(text.to_owned()),
            }
        }
    }
}

/// The words of an answer from one on.
fn from(answer: &str, first: usize) -> String {
    answer.split(' ').skip(first).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_free_lock_is_written_with_its_tokens() {
    let mut lock = Lock::new();
    let before = lock.now();
    let answer = lock.acquire(A, 50000, 1, "j1110000").unwrap();
    let numbers: Vec<i64> = answer.split(':').map(|word| word.parse().unwrap()).collect();
    assert!(before <= numbers[0] && numbers[1..] == [numbers[0]; 2], "{answer}");
    assert_eq!(lock.get("lock"), format!("dl1:{A}:{P}:{0}:{0}:50000:w", numbers[0]));
    assert_eq!(lock.get("fence"), numbers[0].to_string());
    lock.lives("lock", 50000);
    lock.lives("fence", 50000 + IDLE);
    for (size, last) in [(1, AHEAD + 1), (3, AHEAD + 3)] {
        lock.command(&format!("SET fence {AHEAD}"));
        lock.command("DEL lock");
        let answer = lock.acquire(A, 50000, size, "j1110000").unwrap();
        assert!(answer.ends_with(&format!(":{}:{last}", AHEAD + 1)), "{answer}");
        assert_eq!(lock.get("fence"), last.to_string());
    }
    lock.command("DEL lock fence");
    let answer = lock.acquire(A, 50000, 3, "j1110000").unwrap();
    let numbers: Vec<i64> = answer.split(':').map(|word| word.parse().unwrap()).collect();
    assert_eq!([numbers[0], numbers[0] + 2], numbers[1..]);
}

#[test]
fn where_numbers_are_not_exact_no_token_is_given() {
    let mut lock = Lock::new();
    // At once, and where a line has to be looked at first.
    for dead in [false, true] {
        for (fence, given) in [(EXACT - 4, true), (EXACT - 3, false), (EXACT, false)] {
            lock.command("DEL lock line places");
            if dead {
                lock.place(B, 1, -1000, &format!("{P}:0:50000:1:w"));
            }
            lock.command(&format!("SET fence {fence}"));
            assert_eq!(lock.acquire(A, 50000, 3, "j1110000").is_ok(), given, "{fence}, {dead}");
            assert_eq!(lock.command("EXISTS lock"), u8::from(given).to_string());
        }
    }
}

#[test]
fn who_asks_too_late_gets_nothing() {
    let mut lock = Lock::new();
    let late = (lock.now() - 1000).to_string();
    let head = format!("dl1:{A}:{P}:");
    let answer = lock.eval(&ACQUIRE, &[&head, "50000", "90000", "1", &late, "w", "j1110000"]);
    assert!(
        answer.starts_with("late ") && lock.now() < answer[5..].parse::<i64>().unwrap() + 9_000_000
    );
    lock.held(A, P, 50000);
    let answer = lock.eval(&CHANGE, &[A, "90000", "x", &late, "1", "10000"]);
    assert!(answer.starts_with("late "), "{answer}");
    assert_eq!(lock.get("lock"), format!("dl1:{A}:{P}:50:59:50000:w"));
}

#[test]
fn behind_dead_places_a_lock_is_free() {
    for fence in [0, AHEAD] {
        let mut lock = Lock::new();
        lock.command(&format!("SET fence {fence}"));
        lock.place(B, 1, -1000, &format!("{P}:0:50000:1:w"));
        let answer = lock.acquire(A, 50000, 2, "j1110000").unwrap();
        let now: i64 = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let first = if fence == 0 { now } else { AHEAD + 1 };
        assert_eq!(from(&answer, 2), format!("{first} {} 50000 0", first + 1));
        assert_eq!(lock.get("lock"), format!("dl1:{A}:{P}:{first}:{}:50000:w", first + 1));
        assert_eq!(lock.get("fence"), (first + 1).to_string());
        lock.lives("lock", 50000);
        lock.lives("fence", 50000 + IDLE);
        assert_eq!(lock.command("EXISTS line places"), "0");
    }
}

#[test]
fn one_token_behind_a_line_is_the_time() {
    let mut lock = Lock::new();
    lock.place(B, 1, -1000, &format!("{P}:0:50000:1:w"));
    let answer = lock.acquire(A, 50000, 1, "j1110000").unwrap();
    let now = answer.split(' ').nth(1).unwrap().to_owned();
    assert_eq!(from(&answer, 2), format!("{now} {now} 50000 0"));
    assert_eq!(lock.get("fence"), now);
}

#[test]
fn a_holder_that_asks_again_has_the_longer_ttl_and_its_new_words() {
    let mut lock = Lock::new();
    for (asked, has, left) in
        [(30_000, 50_000, 20_000), (90_000, 90_000, 20_000), (30_000, 50_000, 900_000)]
    {
        lock.held(A, R, 50000);
        lock.command(&format!("PEXPIRE lock {left}"));
        // A change of what is there is not refused for want of memory.
        lock.full(true);
        let answer = lock.acquire(A, asked, 1, "j1110000").unwrap();
        lock.full(false);
        assert_eq!(from(&answer, 2), format!("50 59 {has} 0"));
        assert_eq!(lock.get("lock"), format!("dl1:{A}:{P}:50:59:{has}:w"));
        lock.lives("lock", has);
    }
    // As it stands there: only the time is new, and none is taken away.
    lock.held(A, P, 50000);
    lock.command("PEXPIRE lock 20000");
    lock.acquire(A, 50000, 1, "j1110000").unwrap();
    lock.lives("lock", 50000);
    lock.command("PEXPIRE lock 900000");
    lock.acquire(A, 50000, 1, "j1110000").unwrap();
    lock.lives("lock", 900_000);
}

#[test]
fn who_comes_to_a_held_lock_stands_in_line() {
    let mut lock = Lock::new();
    lock.held(A, R, 50000);
    let mut ears = lock.hear(R);
    let answer = lock.acquire(B, 40000, 2, "t1110000").unwrap();
    let words: Vec<&str> = answer.split(' ').collect();
    assert_eq!((words[0], words[3], lock.line().as_str()), ("busy", "1", ""));
    let mut news = true;
    for (owner, rank) in [(B, 0), (C, 1), (B, 0)] {
        let answer = lock.acquire(owner, 40000, 2, "j1110000").unwrap();
        let words: Vec<&str> = answer.split(' ').collect();
        assert_eq!((words[0], words[3], words[4]), ("queued", "1", rank.to_string().as_str()));
        let left: i64 = words[2].parse().unwrap();
        assert!(20000 < left && left <= 50000, "{answer}");
        let lives: i64 = lock.command(&format!("HGET places {owner}")).parse().unwrap();
        assert_eq!(lives, words[1].parse::<i64>().unwrap() / 1000 + 10_000);
        lock.lives("line", 60_000);
        lock.lives("places", 60_000);
        lock.command("PERSIST line");
        lock.command("PERSIST places");
        // Of the first one alone.
        let told = if std::mem::take(&mut news) { vec![format!("c:{A}")] } else { vec![] };
        assert_eq!(ears.heard(&mut lock), told);
    }
    lock.lives_again();
    assert_eq!(lock.line(), format!("{B} {C}"));
    assert_eq!(lock.command(&format!("HGET places {C}i")), format!("{P}:1:40000:2:w"));
    assert_eq!(lock.command("HGET places #"), "2");
}

impl Lock {
    /// Whoever has a place keeps the line alive when it asks again.
    #[track_caller]
    fn lives_again(&mut self) {
        self.acquire(B, 40000, 2, "j1110000").unwrap();
        self.lives("line", 60_000);
        self.lives("places", 60_000);
    }
}

#[test]
fn half_a_place_is_none() {
    let mut lock = Lock::new();
    lock.held(A, R, 50000);
    lock.place(B, 1, 50000, &format!("{P}:0:50000:1:w"));
    lock.command(&format!("HDEL places {B} {B}i"));
    lock.command(&format!("HSET places {C} 1 {C}i {P}:0:50000:1:w"));
    for (owner, rank) in [(B, "0"), (C, "1")] {
        assert_eq!(from(&lock.acquire(owner, 40000, 2, "j1110000").unwrap(), 4), rank);
        assert_eq!(lock.command(&format!("HGET places {owner}i")), format!("{P}:1:40000:2:w"));
    }
}

#[test]
fn a_ttl_that_is_longer_than_its_holder_knows_is_cut() {
    let mut lock = Lock::new();
    for (ttl, there, left, ours) in [
        ("PEXPIRE lock 900000", format!("dl1:{A}:{P}:50:59:50000:w"), 50000, "1"),
        ("PERSIST lock", format!("dl1:{A}:{P}:50:59:50000:w"), 50000, "1"),
        ("PEXPIRE lock 900000", "foreign".to_owned(), 900_000, "0"),
        ("PERSIST lock", "foreign".to_owned(), -1, "0"),
    ] {
        lock.command(&format!("SET lock {there} PX 50000"));
        lock.command(ttl);
        let answer = lock.acquire(B, 40000, 1, "t1110000").unwrap();
        let words: Vec<&str> = answer.split(' ').collect();
        let said: i64 = words[2].parse().unwrap();
        assert!(left - 30_000 < said && said <= left, "{ttl}, {there}: {answer}");
        assert_eq!(words[3], ours);
        let now: i64 = lock.command("PTTL lock").parse().unwrap();
        assert!(now <= left && (left < 0) == (now < 0), "{now}");
    }
}

#[test]
fn a_release_without_a_line_deletes_and_gives_tokens_back() {
    let mut lock = Lock::new();
    let mut ears = lock.hear(R);
    // What of the fence stands there afterwards.
    for (process, used, long, fence, told) in [
        (P, "", "0", "99", false),
        (P, "", "1", "59", false),
        (P, "57", "0", "57", false),
        (P, "59", "0", "99", false),
        (P, "59", "1", "59", false),
        (P, "7", "0", "99", false),
        (P, "49", "0", "99", false),
        (P, "50", "0", "50", false),
        (P, "0", "1", "59", false),
        (R, "", "0", "99", true),
        (R, "57", "0", "57", true),
    ] {
        lock.held(A, process, 50000);
        lock.command("SET fence 99");
        let case = format!("{process} {used} {long}");
        assert_eq!(lock.release(A, used, "0", long), "1", "{case}");
        assert_eq!(lock.command("EXISTS lock"), "0", "{case}");
        assert_eq!(lock.get("fence"), fence, "{case}");
        if fence != "99" {
            lock.lives("fence", IDLE);
        }
        let heard = ears.heard(&mut lock);
        assert_eq!(heard.len(), usize::from(told), "{case}");
        assert!(heard.iter().all(|message| *message == format!("l:{A}")), "{heard:?}");
    }
}

#[test]
fn who_has_nothing_takes_nothing_away() {
    let mut lock = Lock::new();
    lock.held(A, P, 50000);
    lock.place(B, 1, 50000, &format!("{P}:0:50000:1:w"));
    lock.place(C, 2, 50000, &format!("{P}:0:50000:1:w"));
    lock.command("HSET places # 2");
    let other = "d".repeat(32);
    lock.command("RENAME line aside");
    assert_eq!(lock.release(&other, "", "0", "0"), "0", "without a line too");
    lock.command("RENAME aside line");
    assert_eq!(lock.release(&other, "", "0", "0"), "0");
    assert_eq!(lock.places(), format!("# {B} {B}i {C} {C}i"));
    assert_eq!(lock.release(B, "", "0", "0"), "1");
    assert_eq!((lock.line(), lock.places()), (C.to_owned(), format!("# {C} {C}i")));
    assert_eq!(lock.release(C, "", "0", "0"), "1");
    assert_eq!(lock.command("EXISTS line places"), "0");
    assert_eq!(lock.get("lock"), format!("dl1:{A}:{P}:50:59:50000:w"));
}

#[test]
fn no_token_comes_twice_in_the_same_moment() {
    let mut lock = Lock::new();
    let now = lock.now();
    lock.time = Some(now);
    // At once, and where a line has to be looked at first.
    for (dead, size) in [(false, 1), (false, 2), (true, 1), (true, 2)] {
        for (fence, first) in [(now - 1, now), (now, now + 1), (now + 1, now + 2)] {
            lock.command("DEL lock line places");
            if dead {
                lock.place(B, 1, -1000, &format!("{P}:0:50000:1:w"));
            }
            lock.command(&format!("SET fence {fence}"));
            lock.acquire(A, 50000, size, "j1110000").unwrap();
            let held = format!("dl1:{A}:{P}:{first}:{}:50000:w", first + size - 1);
            assert_eq!(lock.get("lock"), held, "{dead}, {size}");
        }
    }
}

#[test]
fn what_comes_at_the_last_moment_is_in_time() {
    let mut lock = Lock::new();
    let now = lock.now();
    let (head, limit) = (format!("dl1:{A}:{P}:"), now.to_string());
    for (time, is_late) in [(now, false), (now + 1, true)] {
        lock.time = Some(time);
        lock.command("DEL lock");
        let args = [&head, "50000", "90000", "1", &limit, "w", "j1110000"];
        assert_eq!(lock.eval(&ACQUIRE, &args).starts_with("late"), is_late);
        lock.held(A, P, 50_000);
        let args = [A, "20000", "w", &limit, "1", "10000"];
        assert_eq!(lock.eval(&CHANGE, &args).starts_with("late"), is_late);
    }
}
