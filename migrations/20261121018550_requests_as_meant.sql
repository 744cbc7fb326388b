-- 20261121018550_requests_as_meant.sql
-- A request that is closed is changed only when it is opened again in the same call, an amount does not become another by its
-- currency alone, and a number with another kind is a mistake and changes nothing.
-- Safe to run again. Locks no table. Undo: apply tool_service_request_save of 20261121014010 again.
create or replace function private.tool_service_request_save(p_who jsonb, p_arguments jsonb, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_client uuid := (p_who ->> 'client_id')::uuid;
  v_profile uuid := (p_who ->> 'profile_id')::uuid;
  v_kind text := nullif(p_arguments ->> 'kind', '');
  v_area text := nullif(btrim(left(p_arguments ->> 'area', 100)), '');
  v_budget numeric := case when p_arguments ->> 'budget' ~ '^[0-9]{1,12}$' then (p_arguments ->> 'budget')::numeric end;
  v_currency text := nullif(p_arguments ->> 'currency', '');
  v_details text := nullif(btrim(left(p_arguments ->> 'details', 500)), '');
  v_state text := nullif(p_arguments ->> 'state', '');
  v_request public.service_requests;
  v_before jsonb;
  v_open bigint;
begin
  if v_kind !~ '^[a-z][a-z_]{0,39}$' then
    return private.tool_refused('kind must be one small word, such as housing');
  elsif p_arguments ->> 'budget' is not null and v_budget is null then
    return private.tool_refused('budget must be a whole number of currency units, such as 250000');
  elsif v_currency !~ '^[A-Z]{3}$' then
    return private.tool_refused('currency must be a code of three letters, such as RWF');
  elsif v_state not in ('open', 'closed') then
    return private.tool_refused('state must be open or closed');
  end if;
  -- One change of a person after the other.
  perform private.lock_refs(array['requests:' || v_client || ':' || v_profile]);
  if p_arguments ->> 'number' is not null then
    select r.* into v_request from public.service_requests r
     where r.client_id = v_client and r.profile_id = v_profile
       and r.number = case when p_arguments ->> 'number' ~ '^[0-9]{1,9}$' then (p_arguments ->> 'number')::bigint end;
    if not found then
      return private.tool_refused('this person has no request of that number', jsonb_build_object('requests', private.open_requests(v_client, v_profile)));
    end if;
  else
    select r.* into v_request from public.service_requests r
     where r.client_id = v_client and r.profile_id = v_profile and r.state = 'open' and (v_kind is null or r.kind = v_kind)
     order by r.created_at desc, r.number desc limit 1;
  end if;
  select count(*) into v_open from public.service_requests r where r.client_id = v_client and r.profile_id = v_profile and r.state = 'open';
  if v_request.id is null then
    if v_kind is null then
      return private.tool_refused('there is no open request to change; for a new one say its kind');
    elsif v_state = 'closed' then
      return private.tool_refused('there is no open request of this kind to close');
    elsif v_open >= 10 then
      return private.tool_refused('there are ten open requests; close one first');
    end if;
    insert into public.service_requests (client_id, profile_id, session_id, call_id, kind, area, place_id, budget, currency, details)
    values (v_client, v_profile, (p_who ->> 'session_id')::uuid, (p_who ->> 'call_id')::uuid, v_kind, v_area, (private.find_place(v_area)).id, v_budget,
      case when v_budget is not null then coalesce(v_currency, 'RWF') end, v_details)
    returning * into v_request;
    return private.tool_answered(jsonb_build_object('created', true, 'request', private.request_json(v_request)));
  end if;
  if v_kind is null and p_arguments ->> 'number' is null
     and (select count(distinct r.kind) from public.service_requests r where r.client_id = v_client and r.profile_id = v_profile and r.state = 'open') > 1 then
    return private.tool_refused('there are several open requests: say the number or the kind', jsonb_build_object('requests', private.open_requests(v_client, v_profile)));
  end if;
  if v_request.state = 'closed' and coalesce(v_state, 'closed') = 'closed' and num_nonnulls(v_area, v_budget, v_currency, v_details) > 0 then
    return private.tool_refused('that request is closed: nothing was changed. If they want it again, give state open as well');
  elsif v_kind is not null and v_kind <> v_request.kind then
    return private.tool_refused(format('request %s is about %s: nothing was changed. For another kind give no number', v_request.number, v_request.kind));
  elsif v_request.state = 'closed' and v_state = 'open' and v_open >= 10 then
    return private.tool_refused('there are ten open requests; close one first');
  elsif v_budget is null and v_request.budget is not null and v_currency <> v_request.currency then
    return private.tool_refused('the budget is in ' || v_request.currency || ': for another currency give the budget in it');
  end if;
  v_before := private.request_json(v_request);
  update public.service_requests r
     set area = coalesce(v_area, r.area), place_id = case when v_area is null then r.place_id else (private.find_place(v_area)).id end,
         budget = coalesce(v_budget, r.budget),
         currency = case when coalesce(v_budget, r.budget) is not null then coalesce(v_currency, r.currency, 'RWF') end,
         details = coalesce(v_details, r.details), state = coalesce(v_state, r.state),
         closed_at = case coalesce(v_state, r.state) when 'closed' then coalesce(r.closed_at, p_now) end,
         session_id = coalesce((p_who ->> 'session_id')::uuid, r.session_id), call_id = coalesce((p_who ->> 'call_id')::uuid, r.call_id)
   where r.id = v_request.id
  returning * into v_request;
  return private.tool_answered(jsonb_build_object('created', false, 'request', private.request_json(v_request),
    'changed', private.changes_of(v_before, private.request_json(v_request), '{area,budget,currency,details,state}')));
end
$$;

comment on function private.tool_service_request_save is 'Tool: makes a request of this person, or changes the one that is open; one that is closed is opened by state open.';

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121018550'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
