//! A call is over. Its summary is asked for here.

use ihuza_core::{json, problem::Problem, realtime};
use ihuza_edge::{
    endpoint::{Call, Outcome},
    reply::Reply,
    voice,
};

use crate::asker;

pub fn end(call: Call) -> Result<Outcome, Problem> {
    asker(&call)?;
    let mut p = realtime::end_fields(&json::object(call.request.body()?)?)?;
    p.insert("correlation_id".to_owned(), call.cx.correlation_id.as_str().into());
    Ok(Outcome::later(async move { Ok(Reply::json(200, &voice::end(&call.cx, p).await?)) }))
}
