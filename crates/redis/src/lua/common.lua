-- What the slow ways of the scripts share. Needs `call`, and `us`: the server's time, read once and before the first SET.
--
-- One lock is four keys in one slot: L the lock, F the fence counter, Q the line (owner -> arrival number), H the places
-- (owner -> deadline in ms, owner .. 'i' -> what to grant, '#' -> the last arrival number).
-- L = 'dl1:' owner ':' process ':' first token ':' last token of the block ':' ttl ':' metadata, owner and process of 32 hex digits.
local IDLE, PLACE_MAX, LIMIT, BATCH = 3600000, 60000, 512, 64
local ms = math.floor(us / 1000)

-- Lua by itself writes numbers with 14 digits. It is slow, so no number is written twice.
local function fmt(n) return string.format('%.0f', n) end
local now = fmt(us)

local function is(v, owner) return string.sub(v, 1, 37) == 'dl1:' .. owner .. ':' end

-- process, first, last, ttl; nil for what another library wrote
local function parse(v) return string.match(v, '^dl1:%x+:(%x+):(%d+):(%d+):(%d+):') end

-- Nothing but a release and a change shortens a ttl.
local function extend(L, ttl)
  if call('PTTL', L) < ttl then call('PEXPIRE', L, ttl) end
end

-- The next tokens, first and last, in digits: a clock that never stands still and never goes back.
local function block(last, size)
  if last < us and size == '1' then return now, now end
  local a = us
  if last >= us then a = last + 1 end
  if a > 2 ^ 53 - size then error('the fencing counter is where numbers are not exact any more') end
  return fmt(a), fmt(a + size - 1)
end

-- `head`: the value as far as the process.
local function put(L, F, head, a, z, ttl, metadata)
  call('SET', F, z, 'PX', ttl + IDLE)
  call('SET', L, head .. a .. ':' .. z .. ':' .. ttl .. ':' .. metadata, 'PX', ttl)
end

-- Refused for want of a right, it harms nobody: polls carry the protocol then.
local function tell(process, message) redis.pcall('PUBLISH', '__distlock:c:' .. process, message) end

-- Is the process surely gone? Asked before anything is said to it: what was sent may be heard by one who was not counted.
local function deaf(process, exact)
  return exact == '1' and redis.pcall('PUBSUB', 'NUMSUB', '__distlock:c:' .. process)[2] == 0
end

-- Grants the free lock to the first place that is alive; `me` is, for it asks. `last`: the last token, where it is known.
-- 'none': nobody stands in line; 'other'; 'mine', first, last, ttl, waiting; 'more': only dead ones so far, to be said again.
local function promote(L, F, Q, H, last, me, exact)
  local seen, n = 0, 1
  while seen < LIMIT do
    local heads = call('ZRANGE', Q, 0, n - 1)
    if #heads == 0 then return 'none' end
    local fields = {}
    for i = 1, #heads do
      fields[2 * i - 1] = heads[i]
      fields[2 * i] = heads[i] .. 'i'
    end
    local places = call('HMGET', H, unpack(fields))
    local owner, process, ttl, size, metadata
    local k = #heads
    for i = 1, #heads do
      local deadline = tonumber(places[2 * i - 1] or '-1')
      -- Not too far ahead either: a step back of the clock keeps no dead place alive.
      if deadline >= ms and deadline <= ms + PLACE_MAX then
        local hears
        process, hears, ttl, size, metadata = string.match(places[2 * i] or '', '^(%x+):(%d):(%d+):(%d+):(.*)$')
        if process and (heads[i] == me or hears == '0' or not deaf(process, exact)) then
          owner, k = heads[i], i
          break
        end
      end
    end
    local a, z
    if owner then a, z = block(last or tonumber(call('GET', F) or '0'), size) end
    -- The first write is one that a full memory does not refuse, nor then what follows.
    call('ZREMRANGEBYRANK', Q, 0, k - 1)
    call('HDEL', H, unpack(fields, 1, 2 * k))
    local waiting = call('ZCARD', Q)
    if waiting == 0 then call('DEL', H) end
    if owner then
      put(L, F, 'dl1:' .. owner .. ':' .. process .. ':', a, z, ttl, metadata)
      if owner == me then return 'mine', a, z, ttl, waiting end
      tell(process, 'g:' .. owner .. ':' .. now .. ':' .. a .. ':' .. z .. ':' .. ttl .. ':' .. waiting .. ':' .. L)
      return 'other'
    end
    seen, n = seen + k, BATCH
  end
  return 'more'
end

-- Keeps a place alive, and the line with it.
local function touch(Q, H, owner, place_ttl)
  call('PEXPIRE', Q, PLACE_MAX)
  call('PEXPIRE', H, PLACE_MAX)
  call('HSET', H, owner, ms + place_ttl)
end

-- What an owner has: keeps it alive, and grants a free lock to the head of the line.
-- 'held', first, last, ttl, waiting; 'free': and nobody stands in line; 'taken', value (or false: say it again), its place
local function stand(L, F, Q, H, v, owner, exact, place_ttl)
  if v and is(v, owner) then
    local _, a, z, ttl = parse(v)
    extend(L, tonumber(ttl))
    return 'held', a, z, ttl, call('ZCARD', Q)
  end
  local place = call('HEXISTS', H, owner .. 'i') == 1 and call('ZSCORE', Q, owner)
  if place then touch(Q, H, owner, place_ttl) end
  if not v then
    local state, a, z, ttl, waiting = promote(L, F, Q, H, nil, owner, exact)
    if state == 'mine' then return 'held', a, z, ttl, waiting end
    if state == 'none' then return 'free' end
    v = call('GET', L)
  end
  return 'taken', v, place
end

-- For how long a lock will stay, and 1 if it is one of ours. A ttl that a step of the clock, or a person, made longer than its holder
-- counts with is cut to what its holder counts with.
local function rest_of(L, v)
  if not v then return 0, 1 end
  local left = call('PTTL', L)
  local _, _, _, ttl = parse(v)
  if not ttl then return left, 0 end
  ttl = tonumber(ttl)
  if left < 0 or left > ttl then
    call('PEXPIRE', L, ttl)
    left = ttl
  end
  return left, 1
end
