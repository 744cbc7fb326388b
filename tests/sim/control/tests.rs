//! Faults and record, on the simplest service there is.

use std::time::Instant;

use super::fault::NAMES;
use super::*;
use crate::edge::client;

/// Says how often it did its work.
#[derive(Default)]
struct Counting {
    done: Mutex<u32>,
}

impl Service for Counting {
    fn subjects(&self, request: &Request) -> Vec<String> {
        vec![request.text()]
    }

    async fn handle(self: Arc<Self>, _: Request, _: Met) -> Answer {
        let mut done = self.done.lock().unwrap();
        *done += 1;
        Answer::json(200, &json!({ "done": *done }))
    }

    fn refuse(&self, status: u16, _: Option<i64>) -> Answer {
        Answer::json(status, &json!({"refused": true}))
    }
}

struct Setup {
    server: Server,
    control: Arc<Control>,
    service: Arc<Counting>,
}

impl Setup {
    async fn new() -> Self {
        let (control, service) = (Arc::new(Control::default()), Arc::new(Counting::default()));
        let server = start(0, service.clone(), control.clone(), Duration::ZERO).await.unwrap();
        Self { server, control, service }
    }

    async fn ask(&self, path: &str, body: &str) -> Option<(u16, String)> {
        let request = client().unwrap().post(format!("{}{path}", self.server.url()));
        let answer = request.body(body.to_owned()).header("authorization", "Bearer hidden").send().await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    fn done(&self) -> u32 {
        *self.service.done.lock().unwrap()
    }
}

/// What one request meets under a fault, and whether the work was done nevertheless.
async fn check(fault: &str, status: Option<u16>, done: bool) {
    let setup = Setup::new().await;
    let order = json!({"kind": fault, "delay_ms": 80}).to_string();
    let (ordered, _) = setup.ask("/control/faults", &order).await.unwrap();
    assert_eq!(ordered, 201, "{fault}");
    let answer = setup.ask("/thing", "").await;
    assert_eq!(answer.map(|(status, _)| status), status, "{fault}");
    assert_eq!(setup.done(), u32::from(done), "{fault}");
    assert_eq!(setup.ask("/thing", "").await.unwrap().0, 200, "{fault} strikes once");
}

#[tokio::test]
async fn each_fault_does_what_its_name_says() {
    check("status_401", Some(401), false).await;
    check("status_429", Some(429), false).await;
    check("status_429_retry_after", Some(429), false).await;
    check("status_500_before", Some(500), false).await;
    check("status_500_after", Some(500), true).await;
    check("status_503", Some(503), false).await;
    check("status_504", Some(504), false).await;
    check("timeout_before", None, false).await;
    check("timeout_after", None, true).await;
    check("cut_before", None, false).await;
    check("cut_after", None, true).await;
    check("truncated", None, true).await;
    check("non_json", Some(200), true).await;
    check("slow", Some(200), true).await;
    check("pgrst002", Some(503), false).await;
}

#[tokio::test]
async fn a_fault_strikes_only_what_it_names_and_as_often_as_told() {
    let setup = Setup::new().await;
    setup.control.fail_with(Fault::Status503).on("+250788123456").times(2);
    setup.control.fail_with(Fault::Status429).on("/other").always();
    assert_eq!(setup.ask("/thing", "250788000000").await.unwrap().0, 200);
    assert_eq!(setup.ask("/thing", "250788123456").await.unwrap().0, 503, "with and without +");
    assert_eq!(setup.ask("/thing", "+250788123456").await.unwrap().0, 503);
    assert_eq!(setup.ask("/thing", "+250788123456").await.unwrap().0, 200);
    for _ in 0..3 {
        assert_eq!(setup.ask("/other", "").await.unwrap().0, 429);
    }
    setup.control.clear_faults();
    assert_eq!(setup.ask("/other", "").await.unwrap().0, 200);
}

#[tokio::test]
async fn every_request_is_on_record_and_its_secrets_are_not() {
    let setup = Setup::new().await;
    setup.control.fail_with(Fault::CutAfter);
    setup.ask("/thing", "first").await;
    setup.ask("/thing", "second").await;
    let record = client().unwrap().get(format!("{}/control/requests", setup.server.url()));
    let record: Vec<Value> = record.send().await.unwrap().json().await.unwrap();
    assert_eq!(record.len(), 2);
    assert_eq!(
        (&record[0]["body"], &record[0]["fault"], &record[0]["status"]),
        (&json!("first"), &json!("cut_after"), &Value::Null)
    );
    assert_eq!(
        (&record[1]["body"], &record[1]["fault"], &record[1]["status"]),
        (&json!("second"), &Value::Null, &json!(200))
    );
    assert_eq!(record[0]["headers"]["authorization"], "Bearer ***");
    assert!(!serde_json::to_string(&record).unwrap().contains("hidden"));

    let forget = client().unwrap().delete(format!("{}/control", setup.server.url()));
    assert_eq!(forget.send().await.unwrap().status(), 200);
    assert!(setup.control.requests().is_empty());
}

#[tokio::test]
async fn an_order_that_makes_no_sense_is_refused_with_what_would() {
    let setup = Setup::new().await;
    let (status, body) = setup.ask("/control/faults", r#"{"kind":"explode"}"#).await.unwrap();
    assert_eq!(status, 400);
    assert!(body.contains("status_429_retry_after"), "{body}");
    assert_eq!(setup.ask("/control/faults", r#"{"kind":"slow","how":"very"}"#).await.unwrap().0, 400);
}

#[tokio::test]
async fn work_goes_on_when_the_caller_hangs_up() {
    let setup = Setup::new().await;
    setup.control.fail_with(Fault::Slow).delay(Duration::from_millis(150));
    let impatient = client().unwrap().post(format!("{}/thing", setup.server.url()));
    assert!(impatient.timeout(Duration::from_millis(50)).send().await.is_err());
    let since = Instant::now();
    while setup.done() == 0 && since.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(setup.done(), 1);
}

#[tokio::test]
async fn a_server_goes_away_and_comes_back_on_the_same_port() {
    let setup = Setup::new().await;
    setup.server.go_down().await;
    let since = Instant::now();
    while setup.ask("/thing", "").await.is_some() && since.elapsed() < Duration::from_secs(5) {}
    let error = client().unwrap().get(setup.server.url()).send().await.unwrap_err();
    assert!(error.is_connect(), "{error}");
    setup.server.come_back().await.unwrap();
    assert_eq!(setup.ask("/thing", "").await.unwrap().0, 200);
}

#[test]
fn fault_names_are_read_as_they_are_written() {
    for (fault, name) in NAMES {
        assert_eq!((fault.to_string().as_str(), name.parse()), (name, Ok(fault)));
    }
    assert_eq!("code_131026".parse(), Ok(Fault::Code(131_026)));
    assert_eq!("late_code_131049".parse(), Ok(Fault::LateCode(131_049)));
}
