-- 20261121014010_requests_and_bookings.sql
-- What a person asks for and what they have booked: rows that a tool makes and changes, with everything that was changed.
-- Safe to run again. Locks only new tables. Undo: drop the three tables and the functions.
create table if not exists public.service_requests (
  id uuid constraint service_requests_pkey primary key default gen_random_uuid(),
  number bigint generated always as identity constraint service_requests_number_key unique,
  client_id uuid not null constraint service_requests_client_id_fkey references public.clients (id),
  profile_id uuid not null constraint service_requests_profile_id_fkey references public.profiles (id) on delete cascade,
  session_id uuid constraint service_requests_session_id_fkey references public.omnichannel_sessions (id) on delete set null,
  call_id uuid constraint service_requests_call_id_fkey references public.voice_calls (id) on delete set null,
  kind text not null,
  area text,
  place_id integer constraint service_requests_place_id_fkey references public.places (id),
  budget numeric(18,6),
  currency char(3),
  details text,
  state text not null default 'open',
  closed_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint service_requests_kind_is_a_word check (kind ~ '^[a-z][a-z_]{0,39}$'),
  constraint service_requests_state_is_known check (state in ('open', 'closed')),
  constraint service_requests_budget_has_currency check ((budget is null) = (currency is null)),
  constraint service_requests_budget_is_not_negative check (budget >= 0),
  constraint service_requests_texts_are_short check (length(area) <= 200 and length(details) <= 2000)
);
create table if not exists public.transport_bookings (
  id uuid constraint transport_bookings_pkey primary key default gen_random_uuid(),
  number bigint generated always as identity constraint transport_bookings_number_key unique,
  client_id uuid not null constraint transport_bookings_client_id_fkey references public.clients (id),
  profile_id uuid not null constraint transport_bookings_profile_id_fkey references public.profiles (id) on delete cascade,
  session_id uuid constraint transport_bookings_session_id_fkey references public.omnichannel_sessions (id) on delete set null,
  call_id uuid constraint transport_bookings_call_id_fkey references public.voice_calls (id) on delete set null,
  state text not null default 'requested',
  pickup text not null,
  pickup_place_id integer constraint transport_bookings_pickup_place_id_fkey references public.places (id),
  destination text not null,
  destination_place_id integer constraint transport_bookings_destination_place_id_fkey references public.places (id),
  pickup_at timestamptz,
  passengers smallint not null default 1,
  vehicle text,
  note text,
  driver text,
  price numeric(18,6),
  currency char(3),
  cancelled_by text,
  state_at timestamptz not null default now(),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint transport_bookings_state_is_known check (state in ('requested', 'confirmed', 'assigned', 'done', 'cancelled')),
  constraint transport_bookings_vehicle_is_known check (vehicle in ('moto', 'car', 'van', 'bus', 'truck')),
  constraint transport_bookings_passengers_are_some check (passengers between 1 and 60),
  constraint transport_bookings_places_are_given check (btrim(pickup) <> '' and btrim(destination) <> ''),
  constraint transport_bookings_texts_are_short check (length(pickup) <= 200 and length(destination) <= 200 and length(note) <= 1000 and length(driver) <= 200),
  constraint transport_bookings_price_has_currency check ((price is null) = (currency is null)),
  constraint transport_bookings_assigned_has_driver check (state <> 'assigned' or driver is not null),
  constraint transport_bookings_cancelled_by_is_known check (cancelled_by in ('person', 'operator')),
  constraint transport_bookings_cancelled_says_by_whom check ((state = 'cancelled') = (cancelled_by is not null))
);
create table if not exists public.request_changes (
  id bigint generated always as identity constraint request_changes_pkey primary key,
  client_id uuid not null constraint request_changes_client_id_fkey references public.clients (id),
  profile_id uuid not null constraint request_changes_profile_id_fkey references public.profiles (id) on delete cascade,
  service_request_id uuid constraint request_changes_service_request_id_fkey references public.service_requests (id) on delete cascade,
  transport_booking_id uuid constraint request_changes_transport_booking_id_fkey references public.transport_bookings (id) on delete cascade,
  changed_by text not null,
  channel text,
  changes jsonb not null,
  correlation_id text,
  created_at timestamptz not null default now(),
  constraint request_changes_are_of_one_thing check (num_nonnulls(service_request_id, transport_booking_id) = 1),
  constraint request_changes_changes_is_object check (jsonb_typeof(changes) = 'object')
);
do $$
begin
  perform private.require_columns('public.service_requests', '{
    "id": "uuid", "number": "bigint", "client_id": "uuid", "profile_id": "uuid", "session_id": "uuid", "call_id": "uuid", "kind": "text",
    "area": "text", "place_id": "integer", "budget": "numeric(18,6)", "currency": "character(3)", "details": "text", "state": "text",
    "closed_at": "timestamp with time zone", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
  perform private.require_columns('public.transport_bookings', '{
    "id": "uuid", "number": "bigint", "client_id": "uuid", "profile_id": "uuid", "session_id": "uuid", "call_id": "uuid", "state": "text",
    "pickup": "text", "pickup_place_id": "integer", "destination": "text", "destination_place_id": "integer",
    "pickup_at": "timestamp with time zone", "passengers": "smallint", "vehicle": "text", "note": "text", "driver": "text",
    "price": "numeric(18,6)", "currency": "character(3)", "cancelled_by": "text", "state_at": "timestamp with time zone",
    "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
  perform private.require_columns('public.request_changes', '{
    "id": "bigint", "client_id": "uuid", "profile_id": "uuid", "service_request_id": "uuid", "transport_booking_id": "uuid",
    "changed_by": "text", "channel": "text", "changes": "jsonb", "correlation_id": "text", "created_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_service_requests_client on public.service_requests (client_id, state, created_at desc);
create index if not exists idx_service_requests_profile on public.service_requests (profile_id, client_id) where state = 'open';
create index if not exists idx_service_requests_person on public.service_requests (profile_id);
create index if not exists idx_service_requests_session on public.service_requests (session_id) where session_id is not null;
create index if not exists idx_service_requests_call on public.service_requests (call_id) where call_id is not null;
create index if not exists idx_service_requests_place on public.service_requests (place_id) where place_id is not null;
create index if not exists idx_transport_bookings_client on public.transport_bookings (client_id, state, created_at desc);
create index if not exists idx_transport_bookings_profile on public.transport_bookings (profile_id, client_id) where state in ('requested', 'confirmed', 'assigned');
create index if not exists idx_transport_bookings_person on public.transport_bookings (profile_id);
create index if not exists idx_transport_bookings_session on public.transport_bookings (session_id) where session_id is not null;
create index if not exists idx_transport_bookings_call on public.transport_bookings (call_id) where call_id is not null;
create index if not exists idx_transport_bookings_pickup_place on public.transport_bookings (pickup_place_id) where pickup_place_id is not null;
create index if not exists idx_transport_bookings_destination_place on public.transport_bookings (destination_place_id) where destination_place_id is not null;
create index if not exists idx_request_changes_client on public.request_changes (client_id, created_at desc);
create index if not exists idx_request_changes_profile on public.request_changes (profile_id);
create index if not exists idx_request_changes_service_request on public.request_changes (service_request_id) where service_request_id is not null;
create index if not exists idx_request_changes_transport_booking on public.request_changes (transport_booking_id) where transport_booking_id is not null;

comment on table public.service_requests is 'What a person asks for, such as a house to let. A tool of an agent makes and changes it; "change budget to 250k" changes this row.';
comment on column public.service_requests.number is 'As it is told to the person; only they can name it.';
comment on column public.service_requests.session_id is 'The conversation in which it was last changed.';
comment on column public.service_requests.call_id is 'The call that it began with, or the newest before.';
comment on column public.service_requests.kind is 'housing, transport, health, job, delivery, repair, other.';
comment on column public.service_requests.area is 'As the person said it.';
comment on column public.service_requests.place_id is 'What area means, where it is known.';
comment on column public.service_requests.budget is 'Most that they want to pay, in currency; per month for a house to let.';
comment on column public.service_requests.currency is 'ISO 4217, of budget.';
comment on column public.service_requests.state is 'open, or closed: they need it no more.';
comment on column public.service_requests.details is 'All else that they said of it.';
comment on column public.service_requests.closed_at is 'When nobody wanted it any more.';
comment on table public.transport_bookings is 'Rides that people have asked for: requested by a tool, then confirmed, assigned to a driver and done by an operator; cancelled by either.';
comment on column public.transport_bookings.number is 'As it is told to the person; only they can name it.';
comment on column public.transport_bookings.session_id is 'The conversation in which it was last changed.';
comment on column public.transport_bookings.call_id is 'The call that it was booked in, or the newest before.';
comment on column public.transport_bookings.state is 'requested -> confirmed -> assigned -> done, or cancelled before that. A change by the person makes it requested again.';
comment on column public.transport_bookings.state_at is 'Since when it is in that state.';
comment on column public.transport_bookings.pickup is 'As the person said it.';
comment on column public.transport_bookings.pickup_place_id is 'What pickup means, where it is known.';
comment on column public.transport_bookings.destination is 'As the person said it.';
comment on column public.transport_bookings.destination_place_id is 'What destination means, where it is known.';
comment on column public.transport_bookings.pickup_at is 'Null: as soon as possible.';
comment on column public.transport_bookings.vehicle is 'Null: whatever fits.';
comment on column public.transport_bookings.note is 'What the driver must know.';
comment on column public.transport_bookings.driver is 'Who comes, as it is told to the person.';
comment on column public.transport_bookings.price is 'As an operator has agreed it, in currency.';
comment on column public.transport_bookings.currency is 'ISO 4217, of price.';
comment on column public.transport_bookings.passengers is 'How many travel, 1 to 60.';
comment on column public.transport_bookings.cancelled_by is 'person or operator.';
comment on table public.request_changes is 'What was changed in a request or booking, append-only; the first row of each is its making.';
comment on column public.request_changes.changed_by is 'person (through a tool), or the operator who did it.';
comment on column public.request_changes.channel is 'Where the person said so: voice, whatsapp, sms; null: mcp or an operator.';
comment on column public.request_changes.changes is '{column: [before, after]}.';

create or replace function private.changes_of(p_before jsonb, p_after jsonb, p_columns text[]) returns jsonb
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_object_agg(c, jsonb_build_array(p_before -> c, p_after -> c)), '{}')
      from unnest(p_columns) c where (p_before -> c) is distinct from (p_after -> c) and not (p_before is null and p_after -> c = 'null'));
end
$$;
comment on function private.changes_of is '{column: [before, after]} of the columns that differ; of a new row those that are given.';

create or replace function private.note_request_change() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_changes jsonb := private.changes_of(case when tg_op = 'UPDATE' then to_jsonb(old) end, to_jsonb(new), tg_argv[1]::text[]);
begin
  if v_changes <> '{}' then
    insert into public.request_changes (client_id, profile_id, service_request_id, transport_booking_id, changed_by, channel, changes, correlation_id)
    values (new.client_id, new.profile_id, case tg_argv[0] when 'service_request' then new.id end, case tg_argv[0] when 'transport_booking' then new.id end,
      coalesce(nullif(current_setting('ihuza.changed_by', true), ''), 'operator'), nullif(current_setting('ihuza.channel', true), ''), v_changes,
      nullif(current_setting('ihuza.correlation_id', true), ''));
  end if;
  return null;
end
$$;
comment on function private.note_request_change is
  'Trigger: no change without its row. Who makes it is told by settings of the transaction: ihuza.changed_by, ihuza.channel, ihuza.correlation_id.';
create or replace function private.changed_by(p_by text, p_channel text, p_correlation_id text) returns void
language plpgsql set search_path = '' as $$
begin
  perform set_config('ihuza.changed_by', coalesce(p_by, ''), true), set_config('ihuza.channel', coalesce(p_channel, ''), true),
          set_config('ihuza.correlation_id', coalesce(p_correlation_id, ''), true);
end
$$;
comment on function private.changed_by is 'Says who makes the changes of requests and bookings until the end of the transaction.';

drop trigger if exists service_requests_note_change on public.service_requests;
create trigger service_requests_note_change after insert or update on public.service_requests for each row
  execute function private.note_request_change('service_request', '{kind,area,budget,currency,details,state}');
drop trigger if exists transport_bookings_note_change on public.transport_bookings;
create trigger transport_bookings_note_change after insert or update on public.transport_bookings for each row
  execute function private.note_request_change('transport_booking', '{state,pickup,destination,pickup_at,passengers,vehicle,note,driver,price,currency,cancelled_by}');

create or replace function private.booking_moves() returns trigger
language plpgsql set search_path = '' as $$
begin
  if new.state is distinct from old.state then
    if old.state in ('done', 'cancelled')
       or new.state = 'assigned' and old.state not in ('requested', 'confirmed')
       or new.state = 'done' and old.state not in ('confirmed', 'assigned') then
      raise exception using errcode = 'PT409', message = format('a booking that is %s cannot become %s', old.state, new.state);
    end if;
    new.state_at := clock_timestamp();
  end if;
  return new;
end
$$;
comment on function private.booking_moves is 'Trigger: what is done or cancelled stays so, and nothing is done that was not confirmed.';
drop trigger if exists transport_bookings_moves on public.transport_bookings;
create trigger transport_bookings_moves before update of state on public.transport_bookings for each row execute function private.booking_moves();

create or replace function private.request_json(p_request public.service_requests) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return jsonb_build_object('number', p_request.number, 'kind', p_request.kind, 'area', p_request.area, 'budget', trim_scale(p_request.budget),
    'currency', p_request.currency, 'details', p_request.details, 'state', p_request.state,
    'since', to_char(p_request.created_at at time zone 'Africa/Kigali', 'YYYY-MM-DD"T"HH24:MI'));
end
$$;
comment on function private.request_json is 'A request as a model may see it; times are Kigali''s.';

create or replace function private.booking_json(p_booking public.transport_bookings) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return jsonb_build_object('number', p_booking.number, 'state', p_booking.state, 'pickup', p_booking.pickup, 'destination', p_booking.destination,
    'pickup_at', coalesce(to_char(p_booking.pickup_at at time zone 'Africa/Kigali', 'YYYY-MM-DD"T"HH24:MI'), 'as soon as possible'),
    'passengers', p_booking.passengers, 'vehicle', p_booking.vehicle, 'note', p_booking.note, 'driver', p_booking.driver,
    'price', trim_scale(p_booking.price), 'currency', p_booking.currency);
end
$$;
comment on function private.booking_json is 'A booking as a model may see it; times are Kigali''s.';

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
comment on function private.tool_service_request_save is 'Tool: makes a request of this person, or changes the one that is open.';

create or replace function private.tool_book_transport(p_who jsonb, p_arguments jsonb, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_client uuid := (p_who ->> 'client_id')::uuid;
  v_profile uuid := (p_who ->> 'profile_id')::uuid;
  v_action text := p_arguments ->> 'action';
  v_pickup text := nullif(btrim(left(p_arguments ->> 'pickup', 200)), '');
  v_destination text := nullif(btrim(left(p_arguments ->> 'destination', 200)), '');
  v_passengers smallint := case when p_arguments ->> 'passengers' ~ '^[0-9]{1,2}$' then (p_arguments ->> 'passengers')::smallint end;
  v_vehicle text := nullif(p_arguments ->> 'vehicle', '');
  v_note text := nullif(btrim(left(p_arguments ->> 'note', 300)), '');
  v_local text := nullif(p_arguments ->> 'pickup_at', '');
  v_at timestamptz;
  v_booking public.transport_bookings;
  v_before jsonb;
  v_open bigint;
begin
  if v_action is null or v_action not in ('create', 'change', 'cancel') then
    return private.tool_refused('action must be create, change or cancel');
  elsif v_vehicle not in ('moto', 'car', 'van', 'bus', 'truck') then
    return private.tool_refused('vehicle must be moto, car, van, bus or truck');
  elsif p_arguments ->> 'passengers' is not null and coalesce(v_passengers, 0) not between 1 and 60 then
    return private.tool_refused('passengers must be from 1 to 60');
  end if;
  if v_local is not null then
    begin
      v_at := v_local::timestamp at time zone 'Africa/Kigali';
    exception when others then
      v_at := null;
    end;
    if v_at is null or v_at < p_now - interval '5 minutes' or v_at > p_now + interval '90 days' then
      return private.tool_refused(format('pickup_at must be a time in the next 90 days, as YYYY-MM-DDTHH:MM; in Kigali it is now %s',
        to_char(p_now at time zone 'Africa/Kigali', 'YYYY-MM-DD"T"HH24:MI')));
    end if;
  end if;
  -- One change of a person after the other.
  perform private.lock_refs(array['bookings:' || v_client || ':' || v_profile]);
  select count(*) into v_open from public.transport_bookings b
   where b.client_id = v_client and b.profile_id = v_profile and b.state in ('requested', 'confirmed', 'assigned');
  if v_action = 'create' then
    if v_pickup is null or v_destination is null then
      return private.tool_refused('pickup and destination are needed to book: ask for what is missing');
    end if;
    -- A model that asks twice for one ride gets one.
    select b.* into v_booking from public.transport_bookings b
     where b.client_id = v_client and b.profile_id = v_profile and b.state in ('requested', 'confirmed', 'assigned')
       and lower(b.pickup) = lower(v_pickup) and lower(b.destination) = lower(v_destination) and b.pickup_at is not distinct from v_at;
    if found then
      return private.tool_answered(jsonb_build_object('created', false, 'already_booked', true, 'booking', private.booking_json(v_booking)));
    elsif v_open >= 5 then
      return private.tool_refused('there are five open bookings; cancel one first', jsonb_build_object('bookings', private.open_bookings(v_client, v_profile)));
    end if;
    insert into public.transport_bookings
      (client_id, profile_id, session_id, call_id, pickup, pickup_place_id, destination, destination_place_id, pickup_at, passengers, vehicle, note)
    values (v_client, v_profile, (p_who ->> 'session_id')::uuid, (p_who ->> 'call_id')::uuid, v_pickup, (private.find_place(v_pickup)).id,
      v_destination, (private.find_place(v_destination)).id, v_at, coalesce(v_passengers, 1), v_vehicle, v_note)
    returning * into v_booking;
    return private.tool_answered(jsonb_build_object('created', true, 'booking', private.booking_json(v_booking)));
  end if;

  if p_arguments ->> 'number' is not null then
    select b.* into v_booking from public.transport_bookings b
     where b.client_id = v_client and b.profile_id = v_profile
       and b.number = case when p_arguments ->> 'number' ~ '^[0-9]{1,9}$' then (p_arguments ->> 'number')::bigint end
       for no key update;
  elsif v_open > 1 then
    return private.tool_refused('there are several open bookings: say the number', jsonb_build_object('bookings', private.open_bookings(v_client, v_profile)));
  else
    select b.* into v_booking from public.transport_bookings b
     where b.client_id = v_client and b.profile_id = v_profile and b.state in ('requested', 'confirmed', 'assigned')
       for no key update;
  end if;
  if v_booking.id is null then
    return private.tool_refused('this person has no such open booking', jsonb_build_object('bookings', private.open_bookings(v_client, v_profile)));
  elsif v_booking.state = 'cancelled' and v_action = 'cancel' then
    return private.tool_answered(jsonb_build_object('booking', private.booking_json(v_booking), 'changed', '{}'::jsonb));
  elsif v_booking.state in ('done', 'cancelled') then
    return private.tool_refused(format('that booking is %s and cannot be changed; a new one can be made', v_booking.state));
  end if;
  v_before := private.booking_json(v_booking);
  if v_action = 'cancel' then
    update public.transport_bookings b set state = 'cancelled', cancelled_by = 'person', session_id = coalesce((p_who ->> 'session_id')::uuid, b.session_id)
     where b.id = v_booking.id returning * into v_booking;
  else
    if num_nonnulls(v_pickup, v_destination, v_at, v_passengers, v_vehicle, v_note) = 0 then
      return private.tool_refused('say what is to be changed');
    end if;
    update public.transport_bookings b
       set pickup = coalesce(v_pickup, b.pickup), pickup_place_id = case when v_pickup is null then b.pickup_place_id else (private.find_place(v_pickup)).id end,
           destination = coalesce(v_destination, b.destination),
           destination_place_id = case when v_destination is null then b.destination_place_id else (private.find_place(v_destination)).id end,
           pickup_at = coalesce(v_at, b.pickup_at), passengers = coalesce(v_passengers, b.passengers), vehicle = coalesce(v_vehicle, b.vehicle),
           note = coalesce(v_note, b.note),
           -- Whoever had confirmed another ride is asked again.
           state = 'requested', driver = null, session_id = coalesce((p_who ->> 'session_id')::uuid, b.session_id)
     where b.id = v_booking.id returning * into v_booking;
  end if;
  return private.tool_answered(jsonb_build_object('booking', private.booking_json(v_booking),
    'changed', private.changes_of(v_before, private.booking_json(v_booking), '{state,pickup,destination,pickup_at,passengers,vehicle,note}')));
end
$$;
comment on function private.tool_book_transport is 'Tool: books a ride for this person, changes or cancels one of theirs.';

create or replace function private.open_bookings(p_client_id uuid, p_profile_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(private.booking_json(b) order by b.number), '[]')
      from (select * from public.transport_bookings t
             where t.client_id = p_client_id and t.profile_id = p_profile_id and t.state in ('requested', 'confirmed', 'assigned')
             order by t.number desc limit 5) b);
end
$$;
comment on function private.open_bookings is 'The bookings of a person that are still to come, for a model.';

create or replace function private.open_requests(p_client_id uuid, p_profile_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(private.request_json(r) order by r.number), '[]')
      from (select * from public.service_requests s
             where s.client_id = p_client_id and s.profile_id = p_profile_id and s.state = 'open'
             order by s.number desc limit 10) r);
end
$$;
comment on function private.open_requests is 'What a person asks for and has not got, for a model.';

create or replace function private.tool_answered(p_result jsonb) returns jsonb
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return jsonb_build_object('ok', true, 'result', p_result);
end
$$;
comment on function private.tool_answered is 'What a tool answers.';

create or replace function private.tool_refused(p_error text, p_more jsonb default '{}') returns jsonb
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return jsonb_build_object('ok', false, 'error', p_error) || p_more;
end
$$;
comment on function private.tool_refused is 'Why a tool has done nothing, so that a model can mend it, and what helps it to.';

create or replace function public.update_transport_booking(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_state text := nullif(p ->> 'state', '');
  v_booking public.transport_bookings;
begin
  perform private.changed_by(private.required(p, 'operator'), null, p ->> 'correlation_id');
  if v_state is not null and v_state not in ('requested', 'confirmed', 'assigned', 'done', 'cancelled') then
    raise exception using errcode = 'PT400', message = 'state must be requested, confirmed, assigned, done or cancelled';
  end if;
  update public.transport_bookings b
     set state = coalesce(v_state, b.state), driver = coalesce(nullif(p ->> 'driver', ''), b.driver),
         price = coalesce((p ->> 'price')::numeric, b.price),
         currency = case when coalesce((p ->> 'price')::numeric, b.price) is not null then coalesce(nullif(p ->> 'currency', ''), b.currency, 'RWF') end,
         pickup_at = coalesce((p ->> 'pickup_at')::timestamptz, b.pickup_at),
         cancelled_by = case when coalesce(v_state, b.state) = 'cancelled' then coalesce(b.cancelled_by, 'operator') end
   where b.number = private.required(p, 'number')::bigint and (p ->> 'client_id' is null or b.client_id = (p ->> 'client_id')::uuid)
  returning * into v_booking;
  if not found then
    raise exception using errcode = 'PT404', message = 'booking not found';
  end if;
  return private.booking_json(v_booking) || jsonb_build_object('id', v_booking.id, 'client_id', v_booking.client_id);
end
$$;
comment on function public.update_transport_booking is
  'RPC: an operator confirms, assigns, finishes or cancels a booking: {number, operator, state?, driver?, price?, currency?, pickup_at?}.';

drop trigger if exists service_requests_touch on public.service_requests;
create trigger service_requests_touch before update on public.service_requests for each row execute function private.touch_updated_at();
drop trigger if exists transport_bookings_touch on public.transport_bookings;
create trigger transport_bookings_touch before update on public.transport_bookings for each row execute function private.touch_updated_at();
alter table public.service_requests enable row level security;
alter table public.transport_bookings enable row level security;
alter table public.request_changes enable row level security;
drop policy if exists service_requests_select on public.service_requests;
create policy service_requests_select on public.service_requests for select to authenticated
  using (profile_id = any (array(select private.my_profile_ids())) or client_id = any (array(select private.my_client_ids())));
drop policy if exists transport_bookings_select on public.transport_bookings;
create policy transport_bookings_select on public.transport_bookings for select to authenticated
  using (profile_id = any (array(select private.my_profile_ids())) or client_id = any (array(select private.my_client_ids())));
drop policy if exists request_changes_select on public.request_changes;
create policy request_changes_select on public.request_changes for select to authenticated
  using (profile_id = any (array(select private.my_profile_ids())) or client_id = any (array(select private.my_client_ids())));
revoke all on public.service_requests, public.transport_bookings, public.request_changes from public, anon, authenticated;
grant select on public.service_requests, public.transport_bookings, public.request_changes to authenticated;
grant select, insert, update, delete on public.service_requests, public.transport_bookings to service_role;
grant select, insert, delete on public.request_changes to service_role;
revoke all on sequence public.service_requests_number_seq, public.transport_bookings_number_seq, public.request_changes_id_seq from public, anon, authenticated;
grant usage, select on sequence public.service_requests_number_seq, public.transport_bookings_number_seq, public.request_changes_id_seq to service_role;
revoke execute on function private.changes_of(jsonb, jsonb, text[]), private.note_request_change(), private.changed_by(text, text, text),
  private.booking_moves(), private.request_json(public.service_requests), private.booking_json(public.transport_bookings),
  private.tool_service_request_save(jsonb, jsonb, timestamptz), private.tool_book_transport(jsonb, jsonb, timestamptz),
  private.open_bookings(uuid, uuid), private.open_requests(uuid, uuid), private.tool_answered(jsonb), private.tool_refused(text, jsonb),
  public.update_transport_booking(jsonb) from public, anon, authenticated;
grant execute on function private.changes_of(jsonb, jsonb, text[]), private.note_request_change(), private.changed_by(text, text, text),
  private.booking_moves(), private.request_json(public.service_requests), private.booking_json(public.transport_bookings),
  private.tool_service_request_save(jsonb, jsonb, timestamptz), private.tool_book_transport(jsonb, jsonb, timestamptz),
  private.open_bookings(uuid, uuid), private.open_requests(uuid, uuid), private.tool_answered(jsonb), private.tool_refused(text, jsonb),
  public.update_transport_booking(jsonb) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121014010'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
