-- What stands here. KEYS: state, server, shapes. -> state or '', run id of the server it was made on or '', shapes
return {redis.call('GET', KEYS[1]) or '', redis.call('GET', KEYS[2]) or '', redis.call('HGETALL', KEYS[3])}
