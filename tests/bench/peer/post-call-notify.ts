// The accept path of post-call-notify as TypeScript would have it: authenticate, parse, enqueue.
import { bearer, equalsAny, serviceKeys } from "./auth";
import { field, object, text } from "./fields";
import { type Call, answer, bodyOf, invalidField, isCorrelationId, log, masked, methodNotAllowed, missingField, notFound, place, serve, unauthorized } from "./http";
import { PhoneError, e164 } from "./phone";

const NAME = "post-call-notify";
const REFERENCE_LIMIT = 128;

export default serve(NAME, async (call: Call) => {
  const { request, env } = call;
  if (call.rest !== "") throw notFound();
  if (request.method !== "POST") throw methodNotAllowed();
  const apikey = request.headers.get("apikey");
  const known = bearer(request.headers.get("authorization"), serviceKeys(env)) || (apikey !== null && equalsAny(apikey, serviceKeys(env)));
  if (!known) throw unauthorized();

  const body = object(await bodyOf(request));
  const callRef = text(body, "call_id");
  if (!callRef) throw missingField("call_id", "the id of a call_summaries or voice_calls row, or the provider's call id");
  if (callRef.length > REFERENCE_LIMIT) {
    throw invalidField("call_id", `call_id has more than ${REFERENCE_LIMIT} characters`, "send the id of the call, not its content");
  }
  const profile = text(body, "profile_id");
  const given = text(body, "phone_number");
  const phone = given === undefined ? null : number(given);
  const wanted = text(body, "correlation_id");
  if (wanted !== undefined && !isCorrelationId(wanted)) {
    throw invalidField(
      "correlation_id",
      "correlation_id is no token of 1 to 64 visible ASCII characters",
      "send a UUID, or leave it out and take ours from the answer",
    );
  }
  const correlationId = wanted ?? call.correlationId;

  await place(env.POST_CALL_NOTIFY, correlationId, {
    call_ref: callRef,
    profile_ref: profile !== undefined && profile.length <= REFERENCE_LIMIT ? profile : null,
    phone_number: phone,
    urgent: field(body, "urgent") === true,
  });
  log("info", "POST_CALL_NOTIFY_START", "a call's notification was accepted", NAME, correlationId, {
    call_ref: callRef,
    recipient: phone && masked(phone),
    placed: "queue",
  });
  return answer(202, { status: "accepted", correlation_id: correlationId, status_url: `/${NAME}/${correlationId}` }, correlationId);
});

function number(given: string): string {
  try {
    return e164(given);
  } catch (error) {
    if (!(error instanceof PhoneError)) throw error;
    throw invalidField("phone_number", error.message, "write it in E.164 form, such as +250788123456; leave it out to use the call's own number");
  }
}
