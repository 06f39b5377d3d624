"""Model types that the suite leaves out, by the reason."""

REASONS = {
    "needs a library that is not among the extras": """
        conditional_detr dab-detr deformable_detr detr dinat edgetam edgetam_vision_model fast_vlm gemma3n
        gemma3n_vision higgs_audio_v2_tokenizer layoutlmv2 omdet-turbo pe_audio_video pe_audio_video_encoder
        pe_video pe_video_encoder perception_lm step3p7 table-transformer timm_backbone timm_wrapper
        voxtral_realtime_text
    """,
    "needs arguments of its own, such as the size of each image or a session": """
        aimv2 audioflamingo3_encoder blip_2_qformer chameleon clap cosmos3_omni deepseek_vl_hybrid
        edgetam_video emu3 exaone4_5 fun_asr_nano_encoder gemma3n_audio gemma4_vision glm46v glm4v glm4v_moe
        glm_image glm_ocr glmga granite_docling hyperclovax_vision_v2 inkling2 inkling2_vision instructblip
        instructblipvideo kimi_k25 kosmos-2 lfm2_vl lfm3_vl lighton_ocr llava_next llava_next_video
        llava_onevision minicpm_ocr_vision minicpmv4_7_vision minimax_m3_vl mistral3 mistral_large4 mllama
        muse_glimmer muse_glimmer_assistant muse_spark nemotron3_5_transcribe_word_timestamp paddleocr_vl
        pi0 qwen2_5_omni_thinker qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen3_asr_encoder
        qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe sam2_video sam3_tracker_video sam3_video seggpt
        siglip2_vision_model timesfm video_llama_3 video_llama_3_vision voxtral_realtime
    """,
    "has more than five million parameters however small its settings": """
        bark blt depth_pro encodec fastspeech2_conformer_with_hifigan neucodec pe_audio pe_audio_encoder
        univnet uvdoc vibevoice vibevoice_acoustic_tokenizer vibevoice_acoustic_tokenizer_decoder
        vibevoice_acoustic_tokenizer_encoder vits xcodec2
    """,
    "the rules make no consistent small configuration of it": """
        align aria autoformer bridgetower bros clvp cohere_compass cohere_compass_text cosmos3_edge csm cvt
        d_fine dbrx deepseek_ocr2 deimv2 dia diffusion_gemma dots1 dots3_note efficientloftr efficientnet
        embedding_gemma2 ernie4_5_moe ernie4_5_vl_moe exaone4_5_vision fun_asr_nano fuyu gemma3n_text gemma4
        gemma4_audio gemma4_unified glm5_next glm5_next_text glm_image_vqmodel granite4_vision
        granite_speech5_ctc granite_speech5_encoder hgnet_v2 hunyuan_vl hunyuan_vl_text idefics informer
        inkling_mm_model kimi_k25_vision kyutai_speech_to_text layoutlmv3 levit lfm2_moe lightglue lilt
        llama4 longcat_flash lw_detr mask2former maskformer mimi mimi_decoder mimi_encoder minicpmv4_7
        mistral4 molmo2 moonshine_streaming muse_glimmer_vision muse_spark_audio muse_spark_vision musicgen
        musicgen_melody neomme oneformer pocket_tts_audio_tokenizer pocket_tts_audio_tokenizer_decoder
        pocket_tts_audio_tokenizer_encoder pp_doclayout_v3 pp_doclayout_v4 pp_ocrv5_mobile_rec
        pp_ocrv5_server_rec pp_ocrv6_medium_det pp_ocrv6_small_det pp_ocrv6_small_rec pp_ocrv6_tiny_rec
        qwen2_5_vl_vision qwen4_exp qwen4_exp_text reformer rt_detr rt_detr_v2 sam sam2 sam2_hiera_det_model
        sam2_vision_model sam3_tracker sam_hq seamless_m4t seamless_m4t_v2 siglip2 speecht5 t5gemma2
        t5gemma2_encoder textnet time_series_transformer tvp unlimited_ocr vibevoice_asr vipllava xcodec
        xmod zamba zamba2
    """,
}
LEFT_OUT = {name: reason for reason, names in REASONS.items() for name in names.split()}
