-- 20261121018510_bookings_as_agreed.sql
-- A ride that is changed to what it is stays as agreed, with its driver; one that goes elsewhere or with another vehicle has no agreed
-- price any more; one that is cancelled takes no driver, price or time; and whoever books a ride again for others is told that the
-- first stands.
-- Safe to run again. Locks no table. Undo: apply tool_book_transport and update_transport_booking of 20261121014010 again.
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
  v_differs jsonb;
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
      v_differs := jsonb_strip_nulls(jsonb_build_object(
        'passengers', case when v_passengers <> v_booking.passengers then jsonb_build_array(v_booking.passengers, v_passengers) end,
        'vehicle', case when v_vehicle is distinct from v_booking.vehicle and v_vehicle is not null then jsonb_build_array(v_booking.vehicle, v_vehicle) end,
        'note', case when v_note is distinct from v_booking.note and v_note is not null then jsonb_build_array(v_booking.note, v_note) end));
      return private.tool_answered(jsonb_build_object('created', false, 'already_booked', true, 'booking', private.booking_json(v_booking))
        || case when v_differs = '{}' then '{}' else jsonb_build_object('not_changed', v_differs,
             'note', 'this ride was booked before and nothing is changed in it: if they want it so, use action change with its number') end);
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
    -- What it is already is no change: nobody who has agreed is asked again.
    v_pickup := case when lower(v_pickup) <> lower(v_booking.pickup) then v_pickup end;
    v_destination := case when lower(v_destination) <> lower(v_booking.destination) then v_destination end;
    v_at := case when v_at is distinct from v_booking.pickup_at then v_at end;
    v_passengers := nullif(v_passengers, v_booking.passengers);
    v_vehicle := nullif(v_vehicle, v_booking.vehicle);
    v_note := nullif(v_note, v_booking.note);
    if num_nonnulls(v_pickup, v_destination, v_at, v_passengers, v_vehicle, v_note) = 0 then
      return private.tool_answered(jsonb_build_object('booking', v_before, 'changed', '{}'::jsonb, 'note', 'it was so already: nothing is changed'));
    end if;
    update public.transport_bookings b
       set pickup = coalesce(v_pickup, b.pickup), pickup_place_id = case when v_pickup is null then b.pickup_place_id else (private.find_place(v_pickup)).id end,
           destination = coalesce(v_destination, b.destination),
           destination_place_id = case when v_destination is null then b.destination_place_id else (private.find_place(v_destination)).id end,
           pickup_at = coalesce(v_at, b.pickup_at), passengers = coalesce(v_passengers, b.passengers), vehicle = coalesce(v_vehicle, b.vehicle),
           note = coalesce(v_note, b.note),
           -- Whoever had confirmed another ride is asked again.
           state = 'requested', driver = null,
           -- A price was agreed for a way and a vehicle.
           price = case when num_nonnulls(v_pickup, v_destination, v_vehicle) = 0 then b.price end,
           currency = case when num_nonnulls(v_pickup, v_destination, v_vehicle) = 0 then b.currency end, session_id = coalesce((p_who ->> 'session_id')::uuid, b.session_id)
     where b.id = v_booking.id returning * into v_booking;
  end if;
  return private.tool_answered(jsonb_build_object('booking', private.booking_json(v_booking),
    'changed', private.changes_of(v_before, private.booking_json(v_booking), '{state,pickup,destination,pickup_at,passengers,vehicle,note,driver,price,currency}')));
end
$$;

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
  select b.* into v_booking from public.transport_bookings b
   where b.number = private.required(p, 'number')::bigint and (p ->> 'client_id' is null or b.client_id = (p ->> 'client_id')::uuid)
     for no key update;
  if not found then
    raise exception using errcode = 'PT404', message = 'booking not found';
  elsif v_booking.state = 'cancelled' and num_nonnulls(nullif(p ->> 'driver', ''), p ->> 'price', nullif(p ->> 'currency', ''), p ->> 'pickup_at') > 0 then
    raise exception using errcode = 'PT409', message = 'a booking that is cancelled has no driver, price or time any more';
  elsif p ->> 'price' is null and v_booking.price is not null and nullif(p ->> 'currency', '') <> v_booking.currency then
    raise exception using errcode = 'PT400', message = 'another currency needs its price';
  end if;
  update public.transport_bookings b
     set state = coalesce(v_state, b.state), driver = coalesce(nullif(p ->> 'driver', ''), b.driver),
         price = coalesce((p ->> 'price')::numeric, b.price),
         currency = case when coalesce((p ->> 'price')::numeric, b.price) is not null then coalesce(nullif(p ->> 'currency', ''), b.currency, 'RWF') end,
         pickup_at = coalesce((p ->> 'pickup_at')::timestamptz, b.pickup_at),
         cancelled_by = case when coalesce(v_state, b.state) = 'cancelled' then coalesce(b.cancelled_by, 'operator') end
   where b.id = v_booking.id
  returning * into v_booking;
  return private.booking_json(v_booking) || jsonb_build_object('id', v_booking.id, 'client_id', v_booking.client_id);
end
$$;

comment on column public.transport_bookings.price is 'As an operator has agreed it, in currency, for this way and vehicle: a change of these takes it away.';

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121018510'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
