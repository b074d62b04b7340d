//! A node small enough to be obviously right: it keeps every copy in the order it came, and bills by walking that list.
//!
//! It can misbehave on purpose, as real nodes and networks do (`Trouble`) and as a wrong node would (`Lie`).

mod bill;
mod door;
mod http;

use std::collections::{HashMap, HashSet};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use bill::{Copy, Rate, Verdicts};
use door::read_clicks;
use http::{Request, read_request, write_answer};

/// What goes wrong on the way, every so many requests for clicks; 0 = never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trouble {
    /// Stores the batch and breaks the connection instead of answering.
    pub stored_unanswered_every: u64,
    /// Breaks the connection without storing.
    pub lost_every: u64,
    /// Stores nothing and answers 503 with everything in `retry`.
    pub busy_every: u64,
    /// Accepts the first half and wants the second again, every other of which it has stored.
    pub half_every: u64,
    /// Rejects the last click of the batch.
    pub reject_every: u64,
    /// Answers 429 with `Retry-After: 0`.
    pub limited_every: u64,
    /// Refuses bad clicks for another reason than theirs.
    pub wrong_codes: bool,
}

/// What the answers get wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    None,
    LosesOneClick,
    BillsOneTwice,
    OneMicroTooMuch,
    OneConflictTooMany,
    OneUnexplained,
    OneUncausedLate,
    ForgetsOneCampaign,
    InventsOneCampaign,
}

#[derive(Debug)]
struct State {
    trouble: Trouble,
    lie: Mutex<Lie>,
    copies: Mutex<Vec<Copy>>,
    rates: Mutex<Vec<Rate>>,
    verdicts: Mutex<Verdicts>,
    reconciled: Mutex<HashSet<String>>,
    requests: AtomicU64,
    /// The bill of an hour, while the number of copies stays.
    billed: Mutex<HashMap<(String, usize), Vec<Value>>>,
}

/// A running node; its threads end with the process.
#[derive(Debug, Clone)]
pub struct FakeNode {
    pub url: String,
    state: Arc<State>,
}

impl FakeNode {
    pub fn start(trouble: Trouble) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let state = Arc::new(State {
            trouble,
            lie: Mutex::new(Lie::None),
            copies: Mutex::default(),
            rates: Mutex::default(),
            verdicts: Mutex::default(),
            reconciled: Mutex::default(),
            requests: AtomicU64::new(0),
            billed: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Self { url, state }
    }

    pub fn lie(&self, lie: Lie) {
        *self.state.lie.lock().expect("not poisoned") = lie;
    }

    /// Identities stored, each once.
    pub fn identities(&self) -> usize {
        let copies = self.state.copies.lock().expect("not poisoned");
        copies
            .iter()
            .map(|copy| (copy.campaign_id.clone(), copy.click_id.clone()))
            .collect::<HashSet<_>>()
            .len()
    }

    pub fn copies(&self) -> usize {
        self.state.copies.lock().expect("not poisoned").len()
    }

    /// Stores a click that no ledger knows.
    pub fn store_stranger(&self, hour_start_ms: i64) {
        let line = json!({"campaign_id": "stranger", "click_id": "00000000-0000-4000-8000-000000000000",
            "ad_id": "", "publisher_id": "", "event_time": hour_start_ms});
        self.state.copies.lock().expect("not poisoned").push(Copy::read(&line));
    }
}

fn serve(mut stream: TcpStream, state: &State) {
    while let Some(request) = read_request(&mut stream) {
        let answer = match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/v1/clicks") => clicks(state, &request),
            ("POST", "/v1/verdicts") => Some((202, verdicts(state, &request))),
            ("POST", "/v1/campaigns") => {
                state.rates.lock().expect("not poisoned").extend(lines(&request).iter().map(Rate::read));
                Some((200, json!({}).to_string()))
            }
            ("POST", "/v1/reconciliations") => Some((200, reconcile(state, &request))),
            ("GET", "/v1/billing") => Some((200, billing(state, &request))),
            ("GET", "/v1/divergence") => Some((200, divergence(state, &request))),
            ("GET", "/v1/reconciliations") => {
                let hours = state.reconciled.lock().expect("not poisoned");
                let rows = hours.iter().map(|hour| json!({"hour": hour, "path": "lambda"})).collect();
                Some((200, page(rows, &request)))
            }
            _ => Some((404, json!({"title": "no such call"}).to_string())),
        };
        let Some((status, body)) = answer else { return };
        if write_answer(&mut stream, status, body.as_bytes()).is_err() {
            return;
        }
    }
}

fn lines(request: &Request) -> Vec<Value> {
    request
        .body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("the load generator writes JSON"))
        .collect()
}

/// Returns the answer, or `None` to break the connection.
fn clicks(state: &State, request: &Request) -> Option<(u16, String)> {
    let nth = state.requests.fetch_add(1, Ordering::Relaxed) + 1;
    let hits = |every: u64| every > 0 && nth.is_multiple_of(every);
    let clicks = match read_clicks(request) {
        Ok(clicks) => clicks,
        Err(status) => return Some((status, json!({"title": "no batch of clicks"}).to_string())),
    };
    let refused = |(index, click): (usize, &Result<Value, &str>)| {
        let code = if state.trouble.wrong_codes { "too_shy" } else { click.as_ref().err()? };
        click.is_err().then(|| json!({"index": index, "code": code, "detail": "for a test"}))
    };
    let refusals: Vec<Value> = clicks.iter().enumerate().filter_map(refused).collect();
    if !refusals.is_empty() {
        let good: Vec<Copy> = clicks.iter().flatten().map(Copy::read).collect();
        let accepted = good.len();
        state.copies.lock().expect("not poisoned").extend(good);
        let body = json!({"accepted": accepted, "rejected": refusals, "retry": [], "click_ids": {}});
        return Some((if accepted == 0 { 422 } else { 202 }, body.to_string()));
    }
    let copies: Vec<Copy> = clicks.iter().flatten().map(Copy::read).collect();
    let count = copies.len();
    let store = |some: Vec<Copy>| state.copies.lock().expect("not poisoned").extend(some);
    let trouble = state.trouble;
    let answer = |accepted: usize, rejected: Value, retry: Vec<usize>| {
        json!({"accepted": accepted, "rejected": rejected, "retry": retry, "click_ids": {}}).to_string()
    };
    if hits(trouble.lost_every) {
        return None;
    }
    if hits(trouble.stored_unanswered_every) {
        store(copies);
        return None;
    }
    if hits(trouble.limited_every) {
        return Some((429, json!({"title": "over the limit"}).to_string()));
    }
    if hits(trouble.busy_every) {
        return Some((503, answer(0, json!([]), (0..count).collect())));
    }
    if hits(trouble.half_every) {
        let half = count / 2;
        let kept = copies.into_iter().enumerate().filter(|(index, _)| *index < half || index % 2 == 0);
        store(kept.map(|(_, copy)| copy).collect());
        return Some((202, answer(half, json!([]), (half..count).collect())));
    }
    if hits(trouble.reject_every) {
        let last = count - 1;
        store(copies.into_iter().take(last).collect());
        let rejected = json!([{"index": last, "code": "too_old", "detail": "for a test"}]);
        return Some((if last == 0 { 422 } else { 202 }, answer(last, rejected, Vec::new())));
    }
    store(copies);
    Some((202, answer(count, json!([]), Vec::new())))
}

fn verdicts(state: &State, request: &Request) -> String {
    let lines = lines(request);
    let text = |line: &Value, name: &str| line[name].as_str().expect("text").to_owned();
    let rulings =
        lines.iter().map(|line| ((text(line, "campaign_id"), text(line, "click_id")), text(line, "verdict")));
    state.verdicts.lock().expect("not poisoned").extend(rulings);
    json!({"accepted": lines.len(), "rejected": [], "retry": [], "click_ids": {}}).to_string()
}

fn reconcile(state: &State, request: &Request) -> String {
    let asked: Value = serde_json::from_slice(&request.body).expect("JSON");
    let hour = asked["hour"].as_str().expect("an hour").to_owned();
    let rows = billing_rows(state, &hour).len();
    state.reconciled.lock().expect("not poisoned").insert(hour.clone());
    let step = json!({"event": "step", "hour": hour, "step": "sealing"});
    let done = json!({"event": "done", "hour": hour, "outcome": "committed", "run_id": "r", "rows": rows});
    format!("{step}\n{done}\n")
}

fn billing_rows(state: &State, hour: &str) -> Vec<Value> {
    let copies = state.copies.lock().expect("not poisoned");
    let rates = state.rates.lock().expect("not poisoned");
    let verdicts = state.verdicts.lock().expect("not poisoned");
    let mut billed = state.billed.lock().expect("not poisoned");
    let bill = || bill::bill(hour, &copies, &rates, &verdicts);
    billed.entry((hour.to_owned(), copies.len() + verdicts.len())).or_insert_with(bill).clone()
}

fn billing(state: &State, request: &Request) -> String {
    let hour = request.query("hour").expect("an hour");
    let reconciled = state.reconciled.lock().expect("not poisoned").contains(&hour);
    let mut rows = if reconciled { billing_rows(state, &hour) } else { Vec::new() };
    if let Some(first) = rows.iter_mut().find(|row| row["billable"].as_u64() > Some(0)) {
        let mut add = |field: &str, number: i64| {
            first[field] = json!(first[field].as_i64().expect("a number") + number);
        };
        match *state.lie.lock().expect("not poisoned") {
            Lie::LosesOneClick => {
                add("billable", -1);
                add("gross", -1);
            }
            Lie::BillsOneTwice => {
                add("billable", 1);
                add("gross", 1);
            }
            Lie::OneMicroTooMuch => add("amount_micros", 1),
            Lie::OneConflictTooMany => add("conflicts", 1),
            Lie::ForgetsOneCampaign => *first = Value::Null,
            Lie::InventsOneCampaign => {
                let mut invented = first.clone();
                invented["campaign_id"] = json!("load7-999999");
                rows.push(invented);
            }
            Lie::None | Lie::OneUnexplained | Lie::OneUncausedLate => {}
        }
    }
    rows.retain(|row| !row.is_null());
    page(rows, request)
}

/// Every third campaign's stream counted one click fewer, which was late.
fn divergence(state: &State, request: &Request) -> String {
    let hour = request.query("hour").expect("an hour");
    let lie = *state.lie.lock().expect("not poisoned");
    let rows = billing_rows(state, &hour).into_iter().enumerate().map(|(index, row)| {
        let billed = row["billable"].as_i64().expect("a number");
        let late = i64::from(index % 3 == 0 && billed > 0);
        let unexplained = i64::from(lie == Lie::OneUnexplained && index == 0);
        let uncaused = i64::from(lie == Lie::OneUncausedLate && index == 1);
        json!({"campaign_id": row["campaign_id"], "hour_bucket": row["hour_bucket"], "path": "lambda", "version": 1,
            "stream": "complete", "preliminary": billed - late + unexplained, "billed": billed, "late": late + uncaused,
            "late_duplicate": 0, "fraud": 0, "unexplained": unexplained})
    });
    page(rows.collect(), request)
}

/// Seven rows a page, so that everything is paged.
fn page(rows: Vec<Value>, request: &Request) -> String {
    let from: usize = request.query("cursor").map_or(0, |cursor| cursor.parse().expect("our cursor"));
    let next = (from + 7 < rows.len()).then(|| (from + 7).to_string());
    let rows: Vec<Value> = rows.into_iter().skip(from).take(7).collect();
    json!({"rows": rows, "next_cursor": next}).to_string()
}
