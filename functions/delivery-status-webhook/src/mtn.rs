//! MTN's delivery reports, one or many.

use ihuza_core::{
    channel::Provider,
    log::{Event, Level},
    mtn,
    problem::Problem,
};
use ihuza_edge::{
    carrier,
    endpoint::{Call, Outcome},
    host,
};

pub fn reports(call: Call) -> Result<Outcome, Problem> {
    let body = call.request.body()?;
    carrier::authenticate(&call, body, false)?;
    let reports = mtn::parse_delivery_reports(call.request.header("content-type"), body, host::now())?;
    if reports.events.is_empty() && reports.unreadable > 0 {
        call.cx.log(
            Level::Warn,
            Event::DeliveryStatusUnreadable,
            "no report could be read",
            &[("unreadable", reports.unreadable.into())],
        );
        return Err(Problem::bad_body(
            "no delivery report in this body: each needs clientCorrelatorId and deliveryStatus",
        ));
    }
    Ok(crate::accept(call, Provider::Mtn, &reports.events, reports.unreadable))
}
